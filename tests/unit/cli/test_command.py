"""Exit codes, one-line errors and clean JSON, for every command alike."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys, warnings
import typer
from hepalign.cli.command import Answer, command
from hepalign.errors import BadInputError, UsageError, WorkFailedError

app = typer.Typer()

@app.callback()
def root() -> None: ...

@command(app, "do")
def do(what: str) -> Answer:
    print("a library chatters on stdout")
    os.write(1, b"and a C library too\\n")
    warnings.warn("Invalid value for VR LO: 'Doe^Jane'")
    if what == "bad":
        raise BadInputError("ct.nii.gz: no orientation;\\nset one", code="no_orientation")
    if what == "usage":
        raise UsageError("off", code="usage")
    if what == "work":
        raise WorkFailedError("out of memory", code="out_of_memory")
    if what == "bug":
        raise KeyError("/home/somebody/secret")
    doubts = ["ct.nii.gz: thick slices"] if what == "doubtful" else []
    return Answer({"what": what, "warnings": doubts}, f"did {what}", 3 if what == "found" else 0, doubts)

sys.exit(app(standalone_mode=False) or 0)
"""


def call(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("what", "status", "code"),
    [("bad", 3, "no_orientation"), ("usage", 2, "usage"), ("work", 1, "out_of_memory"), ("bug", 1, "internal")],
)
def test_an_error_is_one_line_with_its_exit_status(what: str, status: int, code: str) -> None:
    done = call("do", what)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error[")]
    assert done.returncode == status
    assert len(errors) == 1
    assert errors[0].startswith(f"error[{code}]: ")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert "secret" not in done.stderr
    # a library's warning quotes what it read
    assert "Doe" not in done.stderr


def test_debug_shows_the_traceback() -> None:
    assert "Traceback" in call("do", "bug", "--debug").stderr


def test_json_leaves_one_object_on_stdout_whatever_libraries_print() -> None:
    done = call("do", "well", "--json")
    assert json.loads(done.stdout) == {"what": "well", "warnings": []}
    assert "chatters" in done.stderr
    assert "C library" in done.stderr


def test_json_says_an_error_too() -> None:
    done = call("do", "bad", "--json")
    assert json.loads(done.stdout)["error"] == {
        "code": "no_orientation",
        "message": "ct.nii.gz: no orientation; set one",
    }


def test_people_get_the_text_and_the_answers_own_status() -> None:
    done = call("do", "found")
    assert done.stdout == "did found\n"
    assert done.returncode == 3


def test_people_are_told_warnings_beside_the_text_and_scripts_inside_the_object() -> None:
    people, script = call("do", "doubtful"), call("do", "doubtful", "--json")
    assert people.stdout == "did doubtful\n"
    assert "warning: ct.nii.gz: thick slices\n" in people.stderr
    assert json.loads(script.stdout)["warnings"] == ["ct.nii.gz: thick slices"]
    assert "warning: " not in script.stderr


def hepalign(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from hepalign.cli import main; main()", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )


@pytest.mark.parametrize(
    "words",
    [("nope",), ("plan",), ("train", "painting", "--config", "x"), ("data", "phantom", "--out", "x", "--shape", "3")],
)
def test_words_that_are_off_end_with_status_2_and_one_line(words: tuple[str, ...], tmp_path: Path) -> None:
    done = hepalign(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert len([line for line in done.stderr.splitlines() if line.startswith("error[usage]: ")]) == 1
    assert "Traceback" not in done.stderr


def test_words_that_are_off_answer_in_json_where_asked() -> None:
    done = hepalign("plan", "--json")
    assert json.loads(done.stdout)["error"]["code"] == "usage"


def test_help_is_there_without_the_heavy_imports() -> None:
    code = (
        "import sys\nfrom hepalign.cli.app import run\n"
        "try:\n    run(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print(sorted({'torch', 'ray', 'mlflow', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    data = ["data", "train", "tune", "evaluate", "release", "doctor"]
    chain = ["plan", "guide", "synthesise", "inpaint", "register", "points", "serve", "client"]
    assert [name for name in data + chain if f"\n  {name} " not in done.stdout] == []


def test_a_missing_file_is_named_by_its_base_name_only(tmp_path: Path) -> None:
    done = hepalign("data", "simulate", "--ct", str(tmp_path / "gone.nii.gz"), "--out", str(tmp_path / "out"))
    assert done.returncode == 3
    assert "error[not_found]: gone.nii.gz" in done.stderr
    assert str(tmp_path) not in done.stderr
