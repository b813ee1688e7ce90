"""What `hepalign release …` shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_release import small_release
from typer.main import get_command

from hepalign.cli.app import app


def test_show_lists_every_fact_on_a_line_of_its_own_and_every_rule_of_the_gate(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    release = small_release(tmp_path)
    check = {"rule": "at least 6 cases", "passed": False, "found": "3"}
    (release / "gate.json").write_text(json.dumps({"passed": False, "checks": [check]}), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        get_command(app)(args=["release", "show", str(release)], prog_name="hepalign")
    assert not ended.value.code
    shown = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert ["preprocessing.inpainting.spacing_mm", "2.0"] in shown
    assert ["gate.passed", "False"] in shown
    assert ["at", "least", "6", "cases", "False", "3"] in shown
