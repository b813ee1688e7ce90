"""The tree keeps its shape, and the folders `platform/` and `mlflow/` shadow nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["platform", "serve", "jobs", "infra", "mlflow", "tests", "pyproject.toml"])
def test_the_top_level_the_project_was_promised_is_there(root: Path, name: str) -> None:
    assert (root / name).exists()


def test_platform_and_mlflow_resolve_to_the_real_ones_from_the_root(root: Path) -> None:
    # -c puts the working directory first on sys.path, as `python jobs/x.py` and Ray's workers may
    code = (
        "import platform, mlflow; print(platform.python_version()); print(mlflow.__file__); print(mlflow.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    version, mlflow_file, _ = done.stdout.split()
    assert version == ".".join(map(str, sys.version_info[:3]))
    assert root / "mlflow" not in Path(mlflow_file).parents
    assert Path(mlflow_file).name == "__init__.py"


@pytest.mark.parametrize("folder", ["platform", "mlflow", "jobs", "tests/platform"])
def test_no_package_file_that_would_shadow(root: Path, folder: str) -> None:
    assert not (root / folder / "__init__.py").exists()


def test_mlflow_folder_holds_no_code(root: Path) -> None:
    assert not list((root / "mlflow").rglob("*.py"))


def test_the_lock_has_hashes_and_no_host_names(root: Path) -> None:
    text = (root / "requirements.lock").read_text(encoding="utf-8")
    requirements = [line for line in text.splitlines() if "==" in line and not line.startswith((" ", "#"))]
    assert len(requirements) > 100
    assert text.count("--hash=sha256:") >= len(requirements)
    assert "://" not in text


def test_jobs_define_only_main(root: Path) -> None:
    import ast

    for job in (root / "jobs").glob("*.py"):
        tree = ast.parse(job.read_text(encoding="utf-8"))
        defined = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        assert defined == ["main"], (
            f"{job.name} defines {defined}; classes pickled from a job script lose their identity"
        )
