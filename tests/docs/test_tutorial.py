"""The tutorial's commands, in its order, on a real DICOM series; each goes on with what those before it left."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/tutorials/dicom-to-training.md"
# the table of step 1 names files of an archive that is nobody's
LEFT_OUT = "import-table"
COMMANDS = [
    line.replace(".venv/bin/", "")
    for block in re.findall(r"```console\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for line in block.splitlines()
    if LEFT_OUT not in line
]


@pytest.fixture(scope="module")
def newcomer(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that a reader stands in, with the environment that the page asks for."""
    folder = tmp_path_factory.mktemp("tutorial")
    for name in ("jobs", "mlflow"):
        (folder / name).symlink_to(ROOT / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CT_SERIES", str(real_data / "dicom/totalsegmentator-ct"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        yield folder


@pytest.mark.parametrize("command", COMMANDS, ids=[" ".join(line.split()[:3]) for line in COMMANDS])
def test_a_command_runs_as_it_is_written(newcomer: Path, command: str) -> None:
    done = subprocess.run(command, shell=True, cwd=newcomer, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_training_left_its_weights(newcomer: Path) -> None:
    assert len(COMMANDS) >= 5
    assert (newcomer / "runs/tutorial/inpainting.safetensors").is_file()
