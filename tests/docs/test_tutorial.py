"""The tutorial's commands, in its order, on a real DICOM series."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/tutorials/dicom-to-training.md"
# the table of step 1 names files of an archive that is nobody's
LEFT_OUT = ("import-table",)


def test_the_tutorial_runs_as_it_is_written(real_data: Path, tmp_path: Path) -> None:
    for name in ("jobs", "mlflow"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {
        **os.environ,
        "CT_SERIES": str(real_data / "dicom/totalsegmentator-ct"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    commands = [
        line
        for block in re.findall(r"```console\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
        for line in block.splitlines()
    ]
    wanted = [c.replace(".venv/bin/", "") for c in commands if not any(word in c for word in LEFT_OUT)]
    assert len(wanted) >= 5
    for line in wanted:
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stderr[-3000:]}"
    assert (tmp_path / "runs/tutorial/inpainting.safetensors").is_file()
