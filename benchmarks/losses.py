"""Mutual information and local NCC next to MONAI's: value and gradient equal, then time and memory kept.

Usage: python benchmarks/losses.py [--device cuda] [--size 64] [--bins 23] [--window 9]
Peers: monai.losses.GlobalMutualInformationLoss (Gaussian kernel, the same bins) and
LocalNormalizedCrossCorrelationLoss (the same window). One thread on the CPU, float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from monai.losses import GlobalMutualInformationLoss, LocalNormalizedCrossCorrelationLoss
from torch import Tensor

from hepalign.losses.mutual_information import mutual_information
from hepalign.losses.similarity import lncc_loss
from timing import interleaved, ratio

Loss = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--bins", type=int, default=23)
    parser.add_argument("--window", type=int, default=9)
    words = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    shape = (1, 1, words.size, words.size, words.size)
    first = torch.rand(shape, generator=generator).to(words.device)
    noise = torch.rand(shape, generator=generator).to(words.device)
    second = (0.8 * first.square() + 0.2 * noise).requires_grad_()

    def ours(prediction: Tensor, target: Tensor) -> Tensor:
        return -mutual_information(prediction, target, bins=words.bins, value_range=(0.0, 1.0)).mean()

    peer = GlobalMutualInformationLoss(kernel_type="gaussian", num_bins=words.bins).to(words.device)
    compare(f"MONAI's mutual information over ours, {words.size}³", ours, peer, second, first, at_least=5)
    peer = LocalNormalizedCrossCorrelationLoss(kernel_size=words.window).to(words.device)
    ours = lambda prediction, target: lncc_loss(prediction, target, words.window)  # noqa: E731
    compare(f"MONAI's local NCC over ours, {words.size}³", ours, peer, second, first, at_least=3)


def compare(figure: str, ours: Loss, peer: Loss, prediction: Tensor, target: Tensor, *, at_least: float) -> None:
    """Check value and gradient, then print the ratios of time and of what is kept for the backward pass."""

    def run(loss: Loss) -> tuple[Tensor, Tensor]:
        value = loss(prediction, target)
        return value.detach(), torch.autograd.grad(value, prediction)[0]

    (value, gradient), (their_value, their_gradient) = run(ours), run(peer)
    torch.testing.assert_close(value, their_value, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(gradient, their_gradient, rtol=0, atol=1e-3 * float(their_gradient.abs().max()))
    times = interleaved({"ours": lambda: run(ours), "monai": lambda: run(peer)}, rounds=9)
    ratio(figure, times, "monai", "ours", at_least=at_least)
    kept = {name: [float(_kept_bytes(lambda loss=loss: run(loss)))] for name, loss in (("ours", ours), ("monai", peer))}
    ratio(f"{figure}: memory kept for the backward pass", kept, "monai", "ours", at_least=1)


def _kept_bytes(way: Callable[[], object]) -> int:
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        way()
    return sum(sizes.values())


if __name__ == "__main__":
    main()
