"""How far the main kernels stand from what this machine can do: its measured peaks, and each kernel's share of them.

Usage: python benchmarks/floor.py [--size 96]
Peaks: floating-point operations of a large matrix product (float32, bfloat16) and bytes moved by a large copy, one
thread. A network's share: its counted operations over its seconds, against the peak of the precision that it runs in.
A memory-bound kernel's share: the bytes that it cannot avoid reading and writing once, against the copy.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume
from hepalign.nets.partial_conv import PartialConv3d
from hepalign.nets.precision import autocast, bfloat16_gains, channels_last
from hepalign.nets.regnet import RegNet, network_inputs
from hepalign.transform.displacement import DisplacementField, compose
from hepalign.transform.warp import warp
from timing import single

ROUNDS = 5


def main() -> None:
    """Print peaks and shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=96)
    words = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    peak_flops = {kind: product_peak(kind) for kind in (torch.float32, torch.bfloat16)}
    peak_bytes = copy_peak()
    for kind, peak in peak_flops.items():
        single(f"peak of a matrix product, {str(kind).removeprefix('torch.')}, one thread", [peak / 1e9], "Gflop/s")
    single("peak of a copy, one thread", [peak_bytes / 1e9], "GB/s")
    kind = torch.bfloat16 if bfloat16_gains("cpu") else torch.float32
    for name, way in networks(words.size).items():
        with FlopCounterMode(display=False) as counter, torch.inference_mode(), autocast("cpu"):
            way()
        seconds = best(way)
        share = 100 * counter.get_total_flops() / seconds / peak_flops[kind]
        single(f"{name}: share of the peak", [share], "%", seconds=round(seconds, 4))
    for name, (way, bytes_moved) in movers(words.size).items():
        seconds = best(way)
        single(f"{name}: share of the copy's bandwidth", [100 * bytes_moved / seconds / peak_bytes], "%",
               seconds=round(seconds, 4))  # fmt: skip


def best(way: Callable[[], object], *, reduced: bool = True) -> float:
    """CPU seconds of the fastest of a few calls after one that does not count."""
    seconds = []
    for _ in range(ROUNDS + 1):
        start = time.process_time()
        with torch.inference_mode(), autocast("cpu", enabled=reduced):
            way()
        seconds.append(time.process_time() - start)
    return min(seconds[1:])


def product_peak(kind: torch.dtype, size: int = 1536) -> float:
    """Operations a second of a matrix product."""
    a, b = torch.randn(2, size, size).to(kind)
    return 2 * size**3 / best(lambda: a @ b, reduced=False)


def copy_peak(size: int = 1 << 26) -> float:
    """Bytes read and written a second by a copy that no cache holds."""
    source, target = torch.zeros(size), torch.zeros(size)
    return 2 * 4 * size / best(lambda: target.copy_(source))


def networks(size: int) -> dict[str, Callable[[], object]]:
    """Forward passes of what guide spends its operations on."""
    regnet = channels_last(RegNet().eval())
    pair = torch.rand(2, 1, 1, size, size, size)
    partial = PartialConv3d([32], 32, bias=False)
    features = torch.randn(1, 32, size, size, size).to(memory_format=torch.channels_last_3d)
    mask = torch.ones(1, 1, size, size, size)
    return {
        f"registration network {size}³, forward": lambda: regnet(network_inputs(pair[0], pair[1])),
        f"partial convolution 32 channels {size}³, forward": lambda: partial([(features, mask)]),
    }


def movers(size: int) -> dict[str, tuple[Callable[[], object], int]]:
    """Kernels that only move memory, and the bytes that they must move."""
    geometry = Geometry((size, size, size), np.diag([2.8, 2.8, 2.8, 1.0]))
    wave = np.sin(np.linspace(0, 3, size, dtype=np.float32))
    vectors = np.broadcast_to(5 * wave[:, None, None, None], (size, size, size, 3)).copy()
    field = DisplacementField(vectors, geometry)
    volume = Volume(np.broadcast_to(wave, (size, size, size)).copy(), geometry)
    return {
        f"warp of one volume {size}³": (lambda: warp(volume, field, fill=0.0), (3 + 1 + 1) * 4 * size**3),
        f"composition of two fields {size}³": (lambda: compose(field, field), 3 * 3 * 4 * size**3),
    }


if __name__ == "__main__":
    main()
