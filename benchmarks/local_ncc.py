"""Local NCC loss, value and gradient: ours against MONAI's, same inputs, interleaved; prints the ratio and its spread.

python benchmarks/local_ncc.py [--shape 96,96,80] [--window 9] [--rounds 7]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from monai.losses import LocalNormalizedCrossCorrelationLoss
from torch import Tensor

from hepalign.losses.similarity import lncc_loss

TARGET = 3.0


def seconds(loss: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> tuple[float, Tensor, Tensor]:
    """One forward and backward pass: time, value, gradient with respect to the first image."""
    image = a.clone().requires_grad_()
    start = time.perf_counter()
    value = loss(image, b)
    value.backward()
    elapsed = time.perf_counter() - start
    assert image.grad is not None
    return elapsed, value.detach(), image.grad


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="96,96,80")
    parser.add_argument("--window", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    shape = [int(n) for n in arguments.shape.split(",")]
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 1, 1, *shape, generator=generator)
    reference = LocalNormalizedCrossCorrelationLoss(kernel_size=arguments.window)

    def ours(x: Tensor, y: Tensor) -> Tensor:
        return lncc_loss(x, y, arguments.window)

    ratios, own_times, peer_times = [], [], []
    for round_number in range(arguments.rounds + 1):
        own, value, gradient = seconds(ours, a, b)
        peer, peer_value, peer_gradient = seconds(reference, a, b)
        torch.testing.assert_close(value, peer_value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gradient, peer_gradient, rtol=1e-2, atol=1e-8)
        if round_number:  # the first one warms up
            ratios.append(peer / own)
            own_times.append(own)
            peer_times.append(peer)
    ratio = statistics.median(ratios)
    print(
        json.dumps(
            {
                "figure": "local NCC, value and gradient, against MONAI",
                "shape": shape,
                "window": arguments.window,
                "threads": torch.get_num_threads(),
                "ours_s": round(statistics.median(own_times), 4),
                "monai_s": round(statistics.median(peer_times), 4),
                "ratio": round(ratio, 2),
                "spread": [round(min(ratios), 2), round(max(ratios), 2)],
                "target": TARGET,
                "met": ratio >= TARGET,
            }
        )
    )


if __name__ == "__main__":
    main()
