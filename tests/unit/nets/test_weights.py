"""Weights as safetensors: round trip, digests, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hepalign.errors import BadInputError
from hepalign.nets.checkpoint import KINDS, build_net, kind_of, load_weights, save_weights, unwrap
from hepalign.nets.cyclegan import GeneratorConfig, ResNetGenerator
from hepalign.nets.precision import channels_last

CONFIG = GeneratorConfig(width=2, blocks=1)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, str]:
    torch.manual_seed(0)
    return tmp_path, save_weights(channels_last(ResNetGenerator(CONFIG)), CONFIG, tmp_path, "synthesis")


def code_of(error: pytest.ExceptionInfo[BadInputError]) -> str:
    return error.value.code


def test_round_trip_gives_the_same_answers(saved: tuple[Path, str]) -> None:
    folder, digest = saved
    torch.manual_seed(0)
    original = ResNetGenerator(CONFIG).eval()
    loaded = load_weights(folder, "synthesis", digest)
    image = torch.randn(1, 1, 8, 8, 8)
    torch.testing.assert_close(loaded(image), original(image), rtol=0, atol=0)
    assert not loaded.training
    assert loaded.config == CONFIG
    assert sorted(path.name for path in folder.iterdir()) == ["synthesis.json", "synthesis.safetensors"]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_builds_from_its_defaults_and_knows_its_name(kind: str) -> None:
    assert kind_of(build_net(kind, {})) == kind


def test_a_wrapped_network_is_saved_without_its_wrapper(tmp_path: Path) -> None:
    class Wrapper(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

    net = ResNetGenerator(CONFIG)
    assert unwrap(Wrapper(net)) is net
    save_weights(Wrapper(net), CONFIG, tmp_path, "synthesis")
    assert load_weights(tmp_path, "synthesis").state_dict().keys() == net.state_dict().keys()


def test_missing_files_and_foreign_tensors_are_named(saved: tuple[Path, str]) -> None:
    folder, _ = saved
    with pytest.raises(BadInputError, match=r"inpainting\.safetensors is missing") as error:
        load_weights(folder, "inpainting")
    assert code_of(error) == "weights_missing"
    description = json.loads((folder / "synthesis.json").read_text(encoding="utf-8"))
    description["config"]["width"] = 3
    (folder / "synthesis.json").write_text(json.dumps(description), encoding="utf-8")
    with pytest.raises(BadInputError) as error:
        load_weights(folder, "synthesis")
    assert code_of(error) == "weights_mismatch"


def test_unknown_kinds_and_settings_are_refused() -> None:
    with pytest.raises(BadInputError, match="pconv-unet") as error:
        build_net("transformer", {})
    assert code_of(error) == "unknown_network"
    with pytest.raises(BadInputError, match="widht") as error:
        build_net("resnet-generator", {"widht": 3})
    assert code_of(error) == "network_config"
