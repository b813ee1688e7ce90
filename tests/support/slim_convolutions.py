"""Convolutions of slim grids in bfloat16, in a process whose fresh memory holds huge numbers; prints those that err.

Run with MALLOC_PERTURB_=128: what the C library hands out then reads 3e38 as bfloat16 and as float32.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from hepalign.nets.gated import GatedConv3d
from hepalign.nets.partial_conv import PartialConv3d
from hepalign.nets.precision import channels_last

LAYERS = {
    "plain": lambda inputs, stride: nn.Conv3d(inputs, 16, 3, stride=stride, padding=1),
    "replicate": lambda inputs, stride: nn.Conv3d(inputs, 16, 3, stride=stride, padding=1, padding_mode="replicate"),
    "discriminator": lambda inputs, stride: nn.Conv3d(inputs, 16, 4, stride=stride, padding=1),
    "gated": lambda inputs, stride: GatedConv3d(inputs, 16, stride=stride),
    "partial": lambda inputs, stride: PartialConv3d([inputs], 16, stride=stride),
}


def applied(layer: nn.Module, image: Tensor, *, reduced: bool) -> list[Tensor]:
    """The output and the gradients of the image and of the weights."""
    image = image.clone(memory_format=torch.preserve_format).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
        out = layer([(image, torch.ones_like(image[:, :1]))])[0] if isinstance(layer, PartialConv3d) else layer(image)
    weights = next(iter(layer.parameters()))
    return [out.detach(), *torch.autograd.grad(out.float().square().sum(), (image, weights))]


def errs(layer: nn.Module, image: Tensor) -> bool:
    """Whether bfloat16 is further from float32 than its digits."""
    pairs = zip(applied(layer, image, reduced=True), applied(layer, image, reduced=False), strict=True)
    return not all(float((a.float() - b).norm()) <= 0.02 * float(b.norm()) for a, b in pairs)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    shapes = [*itertools.product((1, 2, 5), (3, 6), (1, 2, 4)), (9, 16, 1), (16, 4, 2)]
    for (name, make), inputs, stride, shape in itertools.product(LAYERS.items(), (1, 32), (1, 2), shapes):
        if name == "discriminator" and min(shape) < 2:
            continue  # a kernel of 4 with a zero on each side does not fit
        layer = channels_last(nn.Sequential(make(inputs, stride)))[0]
        image = torch.randn(1, inputs, *shape).contiguous(memory_format=torch.channels_last_3d)
        if errs(layer, image):
            print(name, inputs, stride, shape)


if __name__ == "__main__":
    main()
