"""What the three inpainting networks have in common, and the parts of the gated one."""

from __future__ import annotations

import pytest
import torch

from hepalign.nets.checkpoint import build_net
from hepalign.nets.gated import ContextualAttention, GatedConv3d

KINDS = ["pconv-unet", "conv-unet", "gated-unet"]
SMALL = {"widths": [4, 4, 4], "head_width": 2}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("residual", [False, True])
def test_the_hole_is_hidden_and_every_weight_learns(kind: str, residual: bool) -> None:
    torch.manual_seed(0)
    net = build_net(kind, {**SMALL, "residual": residual})
    image = torch.randn(2, 1, 18, 16, 20)
    mask = torch.ones_like(image)
    mask[..., 4:9, 4:9, 4:9] = 0
    prior, known = torch.randn_like(image), torch.ones_like(mask)
    output, final = net(image, mask, prior, known)
    net.train()
    hidden, _ = net(image + (1 - mask) * 9, mask, prior, known)
    torch.testing.assert_close(output, hidden)
    assert output.shape == final.shape == image.shape
    output.square().sum().backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_prior_is_optional_and_where_unknown_not_looked_at(kind: str) -> None:
    net = build_net(kind, SMALL).eval()
    image, mask = torch.randn(1, 1, 16, 16, 16), torch.ones(1, 1, 16, 16, 16)
    mask[..., 5:9, 5:9, 5:9] = 0
    with torch.no_grad():
        without, _ = net(image, mask)
        unknown, _ = net(image, mask, torch.randn_like(image), torch.zeros_like(mask))
    torch.testing.assert_close(without, unknown)


def test_gated_convolution_is_features_times_gate() -> None:
    layer = GatedConv3d(1, 1)
    torch.nn.init.zeros_(layer.convolution.weight)
    layer.convolution.bias.data = torch.tensor([-2.0, 0.0])
    torch.testing.assert_close(layer(torch.randn(1, 1, 3, 3, 3)), torch.full((1, 1, 3, 3, 3), -0.1))


def test_attention_borrows_what_looks_alike() -> None:
    # Two kinds of valid features; a hole voxel whose features resemble the second kind must be given the second's.
    attention = ContextualAttention(2)
    seen: list[torch.Tensor] = []
    attention.merge.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.zeros(1, 2, 4, 4, 4)
    x[:, 0, :2], x[:, 1, 2:] = 3.0, 5.0
    mask = torch.ones(1, 1, 4, 4, 4)
    x[0, :, 3, 3, 3] = torch.tensor([0.0, 0.1])
    mask[..., 3, 3, 3] = 0
    attention(x, mask)
    torch.testing.assert_close(seen[0][0, 2:, 3, 3, 3], torch.tensor([0.0, 5.0]), atol=2e-3, rtol=0)
    torch.testing.assert_close(seen[0][0, 2:, 0, 0, 0], x[0, :, 0, 0, 0])
