"""Weights that are not the pinned file, or that would run code, are never loaded."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from hepalign.errors import BadInputError
from hepalign.nets.checkpoint import load_weights, save_weights
from hepalign.nets.cyclegan import GeneratorConfig, ResNetGenerator

CONFIG = GeneratorConfig(width=2, blocks=1)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, str]:
    return tmp_path, save_weights(ResNetGenerator(CONFIG), CONFIG, tmp_path, "synthesis")


def test_fault_70_another_digest_is_refused(saved: tuple[Path, str]) -> None:
    folder, digest = saved
    path = folder / "synthesis.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadInputError) as error:
        load_weights(folder, "synthesis", digest)
    assert error.value.code == "weights_digest"


@pytest.mark.parametrize("make", ["pickle", "torch"])
def test_fault_70_a_pickle_is_refused_unread(saved: tuple[Path, str], make: str) -> None:
    folder, _ = saved
    path = folder / "synthesis.safetensors"
    if make == "pickle":
        path.write_bytes(pickle.dumps({"x": 1}))
    else:
        torch.save({"x": torch.zeros(1)}, path)
    with pytest.raises(BadInputError) as error:
        load_weights(folder, "synthesis")
    assert error.value.code == "weights_format"
