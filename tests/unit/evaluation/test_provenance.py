"""What a kept record depends on is what the code that makes it imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import hepalign
from hepalign.evaluation.provenance import CODE, PEERS_CODE, code_digest

ROOT = Path(hepalign.__file__).parent
# They hold no arithmetic: the errors, the names of array types, the version and empty packages.
NOTHING_COMPUTED = {"errors.py", "shapes.py", "__init__.py", "evaluation/__init__.py"}
PEERS = (
    "import pkgutil, hepalign.evaluation.baselines as b;"
    "modules = ['hepalign.evaluation.baselines.' + m.name for m in pkgutil.iter_modules(b.__path__)];"
    "modules += ['hepalign.evaluation.' + n for n in ('pairs', 'metrics', 'image_metrics', 'gallery')]"
)
OURS = "modules = ['hepalign.evaluation.' + n for n in ('unit', 'methods', 'variants')]"


def imported(modules: str) -> set[str]:
    """The library's files that a fresh process reads for these modules."""
    code = f"{modules}; import importlib, sys; [importlib.import_module(m) for m in modules];"
    code += "print(*(m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'hepalign'), sep='\\n')"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return {Path(line).relative_to(ROOT).as_posix() for line in said.splitlines()}


def uncovered(files: set[str], places: tuple[str, ...]) -> set[str]:
    return {name for name in files - NOTHING_COMPUTED if not any(name == p or name.startswith(f"{p}/") for p in places)}


def test_peers_records_depend_on_all_that_peers_import() -> None:
    files = imported(PEERS)
    assert "evaluation/baselines/greedy.py" in files
    assert uncovered(files, PEERS_CODE) == set()


def test_our_records_depend_on_all_that_our_methods_import() -> None:
    files = imported(OURS)
    assert "inference/register.py" in files
    assert uncovered(files, CODE) == set()


def test_every_place_is_there_and_counts() -> None:
    digests = {code_digest((place,)) for place in CODE}
    assert len(digests) == len(CODE)
    assert code_digest(()) not in digests
    assert code_digest(PEERS_CODE) != code_digest(CODE)
