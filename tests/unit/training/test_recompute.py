"""Activation checkpointing keeps less, and changes nothing else: bitwise, batch norm's statistics included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from toy_stage import ToyConfig, ToyStage

from hepalign.nets.cyclegan import GeneratorConfig, ResNetGenerator
from hepalign.nets.partial_conv import PConvUNet
from hepalign.nets.regnet import RegNet, RegNetConfig, network_inputs
from hepalign.nets.unet import InpaintingNetConfig
from hepalign.training.loop import fit, seed_everything
from hepalign.training.recompute import blocks, recompute_activations
from hepalign.training.schedule import TrainingConfig
from hepalign.training.world import World

SHAPE = (2, 1, 16, 16, 16)


def inpainting() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    mask = torch.ones(SHAPE)
    mask[..., 4:9, 4:9, 4:9] = 0
    image = torch.linspace(-1, 1, mask.numel()).reshape(SHAPE)
    net = PConvUNet(InpaintingNetConfig(widths=(4, 8), head_width=4))
    return net, lambda used: used(image, mask, image * 0.9)[0].square().mean()


def synthesis() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    image = torch.sin(torch.arange(2 * 16**3.0)).reshape(SHAPE)
    return ResNetGenerator(GeneratorConfig(width=4, blocks=2)), lambda used: used(image).square().mean()


def registration() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    moving = torch.sin(torch.arange(2 * 16**3.0)).reshape(SHAPE)
    net = RegNet(RegNetConfig(encoder_channels=4, level_channels=8))
    return net, lambda used: used(network_inputs(moving, moving.flip(2))).square().mean()


def kept_bytes_and_loss(net: nn.Module, loss_of: Callable[[nn.Module], Tensor]) -> tuple[int, Tensor]:
    """What autograd keeps for the backward pass, besides the parameters; and the loss, whose gradients are set."""
    kept: dict[int, int] = {}
    own = {parameter.data_ptr() for parameter in net.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(net)
    loss.backward()
    return sum(kept.values()), loss.detach()


# Most of what RegNet keeps are its cost volumes, which no block holds.
@pytest.mark.parametrize(("made", "share"), [(inpainting, 0.6), (synthesis, 0.6), (registration, 1.0)])
def test_a_network_keeps_less_and_computes_the_same(
    made: Callable[[], tuple[nn.Module, Callable[[nn.Module], Tensor]]], share: float
) -> None:
    torch.manual_seed(0)
    plain, loss_of = made()
    torch.manual_seed(0)
    lean, _ = made()
    recompute_activations(lean)
    plain_bytes, expected = kept_bytes_and_loss(plain, loss_of)
    lean_bytes, found = kept_bytes_and_loss(lean, loss_of)

    assert lean_bytes < share * plain_bytes
    assert torch.equal(found, expected)
    assert plain.state_dict().keys() == lean.state_dict().keys()
    for (name, value), (_, other) in zip(plain.state_dict().items(), lean.state_dict().items(), strict=True):
        assert torch.equal(value, other), name
    for (name, one), (_, other) in zip(plain.named_parameters(), lean.named_parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None and other.grad is not None:
            assert torch.equal(one.grad, other.grad), name


def test_without_gradients_nothing_is_wrapped_up() -> None:
    net, loss_of = inpainting()
    recompute_activations(net)
    with torch.no_grad():
        assert not loss_of(net).requires_grad


def test_blocks_hold_layers_only() -> None:
    found = blocks(ResNetGenerator(GeneratorConfig(width=2, blocks=1)))
    assert len(found) == 7  # stem, two down, two of the residual block, two up
    assert all(not list(layer.children()) for block in found for layer in block.children())


def test_the_loop_takes_it_as_a_setting(tmp_path: Path) -> None:
    histories = []
    for recompute in (False, True):
        seed_everything(1)
        config = TrainingConfig(epochs=2, recompute_activations=recompute)
        histories.append(fit(ToyStage(ToyConfig()), config, World.local(), tmp_path / str(recompute)).history)
    assert histories[0] == histories[1]
