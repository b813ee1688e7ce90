"""Where reduced precision gains: bfloat16 convolutions in channels-last memory; everything else stays float32."""

from __future__ import annotations

import time
from functools import cache
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NetT = TypeVar("NetT", bound=nn.Module)
Triple = tuple[int, int, int]

# Some processors name bfloat16 among their instructions and multiply it at half of float32's speed; where it gains,
# it gains 2 to 7 x. What lies between is not worth the digits.
LEAST_GAIN = 1.5


@cache
def bfloat16_gains(device_type: str) -> bool:
    """Whether this machine multiplies bfloat16 clearly faster than float32; a CPU that knows it is timed once."""
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device_type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return _cpu_gain() >= LEAST_GAIN
    return False


def _cpu_gain(size: int = 512, rounds: int = 8) -> float:
    """How many times faster a bfloat16 product is than a float32 one, each at its best of a few turns (about 30 ms)."""
    factors = {kind: torch.ones(size, size, dtype=kind) for kind in (torch.float32, torch.bfloat16)}
    best_s = dict.fromkeys(factors, float("inf"))
    with torch.autocast("cpu", enabled=False):
        for _ in range(rounds):
            for kind, factor in factors.items():
                start = time.perf_counter()
                torch.mm(factor, factor)
                best_s[kind] = min(best_s[kind], time.perf_counter() - start)
    return best_s[torch.float32] / best_s[torch.bfloat16]


def autocast(device: torch.device | str, *, enabled: bool = True) -> torch.autocast:
    """A context in which convolutions run in bfloat16 where that gains; weights stay float32."""
    device_type = torch.device(device).type
    return torch.autocast(device_type, torch.bfloat16, enabled=enabled and bfloat16_gains(device_type))


def channels_last(net: NetT) -> NetT:
    """The same network with its 3D weights laid out channels-last, the fast order on CPUs and tensor cores.

    Its convolutions become such that are right on grids of any size (see `conv3d`).
    """
    for layer in net.modules():
        if type(layer) is nn.Conv3d and layer.groups == 1 and layer.dilation == (1, 1, 1):
            layer.__class__ = _Conv3d
    net.to(memory_format=torch.channels_last_3d)
    return net


def conv3d(
    image: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Triple = (1, 1, 1), padding: Triple = (0, 0, 0)
) -> Tensor:
    """`F.conv3d` that is right on slim grids as well: on a CPU it lays their zeros out, and computes in float32.

    Left to itself, oneDNN reads memory there that is not its own (torch 2.15, a processor with AMX). In bfloat16 with
    a stride, or of one channel, an axis of one output gives what happens to lie there, up to NaN; so does the weights'
    gradient of a kernel longer than the grid, in float32 as well.
    """
    kind = image.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else image.dtype
    if kind != "cpu" or not _slim(image, weight, stride, padding):
        return F.conv3d(image, weight, bias, stride, padding)
    with torch.autocast(kind, enabled=False):
        wide = torch.promote_types(dtype, torch.float32)
        padded = F.pad(image.to(wide), _on_both_sides(padding))
        return F.conv3d(padded, weight.to(wide), None if bias is None else bias.to(wide), stride).to(dtype)


def _on_both_sides(padding: Triple) -> list[int]:
    """As `F.pad` takes it: the last axis first."""
    return [pad for pad in reversed(padding) for _ in range(2)]


def _slim(image: Tensor, weight: Tensor, stride: Triple, padding: Triple) -> bool:
    axes = zip(image.shape[2:], weight.shape[2:], stride, padding, strict=True)
    return any(length < kernel or length + 2 * pad < kernel + step for length, kernel, step, pad in axes)


class _Conv3d(nn.Conv3d):
    def forward(self, image: Tensor) -> Tensor:
        padding = cast("Triple", self.padding)
        if self.padding_mode != "zeros":
            image = F.pad(image, _on_both_sides(padding), mode=self.padding_mode)
            padding = (0, 0, 0)
        return conv3d(image, self.weight, self.bias, cast("Triple", self.stride), padding)
