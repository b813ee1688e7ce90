"""The how-tos of promoting and rolling back, their commands run as they are written."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from mlflow_store import isolated
from small_release import evaluation, small_release

from hepalign.cli.app import run

HOW_TO = Path(__file__).parents[2] / "docs/how-to"
POLICY = "min_cases: 1\nthresholds:\n  - {pair: pCT-iCT, structure: liver, metric: tre_mm, at_most: 5.0}\n"


def commands(page: str) -> list[list[str]]:
    """The page's `hepalign release …` lines, as words."""
    lines = (HOW_TO / page).read_text(encoding="utf-8").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith(".venv/bin/hepalign release")]


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Runs a command in a working copy's place; gives its JSON."""
    monkeypatch.chdir(tmp_path)
    for name, value in isolated(tmp_path / "store").items():
        monkeypatch.setenv(name, value)
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow/promotion.yaml").write_text(POLICY, encoding="utf-8")

    def call(*words: str):  # type: ignore[no-untyped-def]
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            run([*words, "--json"])
        said = capfd.readouterr()
        assert not ended.value.code, said.err
        return json.loads(said.out)

    return call


def trained(folder: Path, seed: int) -> None:
    """`runs/…` as three trainings leave it."""
    (small_release(folder / str(seed), seed).parent / "trainings").rename(folder / "runs")


def test_promote_and_roll_back_as_the_guides_say(told, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    build, promote, history, *looks = commands("promote.md")
    rollback, history_again = commands("roll-back.md")
    trained(tmp_path, 1)
    told(*build)
    evaluation(tmp_path / "runs/evaluation-1", tmp_path / "releases/1", {"case-1": 2.0})
    assert told(*promote)["version"] == "1"
    assert [row["reason"] for row in told(*history)["history"]] == ["first release"]
    show, diff, listed = (told(*words) for words in looks)
    assert show["gate"]["passed"]
    assert diff["differences"] == []
    assert [row["aliases"] for row in listed["releases"]] == ["candidate, champion"]

    (tmp_path / "runs").rename(tmp_path / "earlier")
    trained(tmp_path, 2)
    told(*[word.replace("releases/1", "releases/2") for word in build])
    evaluation(tmp_path / "runs/evaluation-1", tmp_path / "releases/2", {"case-1": 2.0})
    told(*[word.replace("releases/1", "releases/2") for word in promote])
    assert [row["key"] for row in told("release", "diff", "releases/1", "releases/2")["differences"]]

    assert told(*rollback)["version"] == "1"
    assert [row["action"] for row in told(*history_again)["history"]] == ["rollback", "promote", "promote"]
