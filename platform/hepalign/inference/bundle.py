"""A release on disk and in memory: the networks that belong together, pinned by digest.

A release folder holds `release.json`, `<stage>.safetensors` and `<stage>.json` for each stage, and, where it has been
judged, `gate.json` and `model_card.md`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from hepalign.errors import BadInputError

if TYPE_CHECKING:
    # Who only names, builds or pins a release need not load torch.
    from torch import nn

STAGES = ("synthesis", "inpainting", "registration")
RELEASE_SCHEMA = 1
RELEASE_FILE = "release.json"


@dataclass(frozen=True)
class Bundle:
    """The three networks of one release, in evaluation mode.

    Args:
        networks: by stage name (synthesis, inpainting, registration).
        configs: each network's JSON description, {"kind": …, "config": {…}}.
        manifest: the release's `release.json`.
        digests: SHA-256 of each stage's weights.
        folder: where it was loaded from.
    """

    networks: Mapping[str, nn.Module]
    configs: Mapping[str, Mapping[str, object]]
    manifest: Mapping[str, object]
    digests: Mapping[str, str]
    folder: Path

    @property
    def name(self) -> str:
        """`name version`, as results quote it."""
        return f"{self.manifest['name']} {self.manifest['version']}"

    @property
    def config_digests(self) -> dict[str, str]:
        """`config_digest` of each stage."""
        return {stage: config_digest(config) for stage, config in self.configs.items()}


def config_digest(config: Mapping[str, object]) -> str:
    """SHA-256 of what a network's JSON says: the same weights at another spacing or window are another network."""
    return sha256(json.dumps(dict(config), sort_keys=True).encode())


def load_bundle(folder: Path) -> Bundle:
    """Load a release, each file checked against the digest its manifest pins, into a process made ready for its work.

    Raises:
        BadInputError: `release_missing`, `release_format`, `weights_digest` and what `load_weights` raises.
    """
    from hepalign.inference.heap import reuse_freed_memory
    from hepalign.nets.checkpoint import load_weights
    from hepalign.nets.precision import channels_last

    reuse_freed_memory()
    manifest = _read_manifest(folder)
    networks: dict[str, nn.Module] = {}
    configs: dict[str, Mapping[str, object]] = {}
    digests: dict[str, str] = {}
    for stage in STAGES:
        entry = _entry(manifest, stage)
        content = _read(folder / f"{stage}.json")
        if sha256(content) != entry["config_sha256"]:
            raise BadInputError(
                f"{stage}.json is not the file that the release pinned: fetch the release again", code="weights_digest"
            )
        networks[stage] = channels_last(load_weights(folder, stage, entry["sha256"]))
        configs[stage] = MappingProxyType(json.loads(content))
        digests[stage] = entry["sha256"]
    return Bundle(
        MappingProxyType(networks),
        MappingProxyType(configs),
        MappingProxyType(manifest),
        MappingProxyType(digests),
        folder,
    )


def build_bundle(
    folder: Path,
    weights: Mapping[str, Path],
    *,
    name: str,
    version: str,
    code_commit: str = "unknown",
    preprocessing: Mapping[str, object] | None = None,
    training_data: Mapping[str, object] | None = None,
    gate: Mapping[str, object] | None = None,
    created: datetime | None = None,
) -> Path:
    """Make a release folder out of the three stages' training results.

    Args:
        folder: the release to write; it is made anew.
        weights: stage to the folder that holds `<stage>.safetensors` and `<stage>.json`.
        name: the release's name, with `version` what results quote.
        version: free text, unique for the name.
        code_commit: the git commit that trained it.
        preprocessing: windows, spacings: anything inference must share with training.
        training_data: cohort name to manifest digest.
        gate: the gate's report, also written as `gate.json`; None for a release that was not judged.
        created: defaults to now.

    Returns:
        The folder, which `load_bundle` reads.

    Raises:
        BadInputError: `weights_missing` when a stage has no weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    networks: dict[str, dict[str, str]] = {}
    for stage in STAGES:
        if stage not in weights:
            raise BadInputError(f"a release holds three networks; {stage} has no weights", code="weights_missing")
        for suffix in ("safetensors", "json"):
            source, target = weights[stage] / f"{stage}.{suffix}", folder / f"{stage}.{suffix}"
            if not source.is_file():
                raise BadInputError(f"{source.name} is missing or unreadable", code="weights_missing")
            if source.resolve() != target.resolve():
                shutil.copyfile(source, target)
        networks[stage] = {
            "weights": f"{stage}.safetensors",
            "config": f"{stage}.json",
            "sha256": sha256((folder / f"{stage}.safetensors").read_bytes()),
            "config_sha256": sha256((folder / f"{stage}.json").read_bytes()),
        }
    manifest = {
        "schema": RELEASE_SCHEMA,
        "name": name,
        "version": version,
        "created": (created or datetime.now(UTC)).isoformat(timespec="seconds"),
        "code_commit": code_commit,
        "networks": networks,
        "preprocessing": dict(preprocessing or {}),
        "training_data": dict(training_data or {}),
        "gate": None if gate is None else dict(gate),
    }
    if gate is not None:
        (folder / "gate.json").write_text(
            json.dumps(manifest["gate"], indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
    (folder / RELEASE_FILE).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return folder


def sha256(content: bytes) -> str:
    """Hex SHA-256."""
    return hashlib.sha256(content).hexdigest()


def _read_manifest(folder: Path) -> dict[str, object]:
    try:
        manifest = json.loads(_read(folder / RELEASE_FILE))
    except ValueError as error:
        raise BadInputError(f"{RELEASE_FILE} is not JSON: fetch the release again", code="release_format") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != RELEASE_SCHEMA:
        raise BadInputError(
            f"{RELEASE_FILE} has another schema than {RELEASE_SCHEMA}: use the hepalign version that wrote it",
            code="release_format",
        )
    return manifest


def _entry(manifest: Mapping[str, object], stage: str) -> dict[str, str]:
    networks = manifest.get("networks")
    entry = networks.get(stage) if isinstance(networks, dict) else None
    if not isinstance(entry, dict) or not {"sha256", "config_sha256"} <= entry.keys():
        raise BadInputError(f"{RELEASE_FILE} pins no {stage} network", code="release_format")
    return {str(key): str(value) for key, value in entry.items()}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInputError(
            f"{path.name} is missing or unreadable: a release is a folder with {RELEASE_FILE}", code="release_missing"
        ) from error
