"""Mutual information next to MONAI's, value and gradient equal; time and peak memory.

Usage: python benchmarks/losses.py [--device cuda] [--size 48] [--bins 23]
Peer: monai.losses.GlobalMutualInformationLoss, Gaussian kernel, the same bins. One thread on the CPU, float32.
"""

from __future__ import annotations

import argparse
import json

import torch
from monai.losses import GlobalMutualInformationLoss
from torch import Tensor

from hepalign.losses.mutual_information import mutual_information
from timing import interleaved, report


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--bins", type=int, default=23)
    words = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    shape = (1, 1, words.size, words.size, words.size)
    first = torch.rand(shape, generator=generator).to(words.device)
    noise = torch.rand(shape, generator=generator).to(words.device)
    second = (0.8 * first.square() + 0.2 * noise).requires_grad_()
    peer = GlobalMutualInformationLoss(kernel_type="gaussian", num_bins=words.bins).to(words.device)

    def ours() -> tuple[Tensor, Tensor]:
        loss = -mutual_information(second, first, bins=words.bins, value_range=(0.0, 1.0)).mean()
        return loss.detach(), torch.autograd.grad(loss, second)[0]

    def theirs() -> tuple[Tensor, Tensor]:
        loss = peer(second, first)
        return loss.detach(), torch.autograd.grad(loss, second)[0]

    (loss, gradient), (their_loss, their_gradient) = ours(), theirs()
    torch.testing.assert_close(loss, their_loss, rtol=1e-3, atol=1e-4)
    scale = float(their_gradient.abs().max())
    torch.testing.assert_close(gradient, their_gradient, rtol=0, atol=1e-3 * scale)
    times = interleaved({"ours": ours, "monai": theirs}, rounds=9)
    report(f"mutual information vs MONAI, value and gradient, {words.size}^3", times, "ours", "monai", ">= 5")
    kept = {name: _kept_bytes(way) for name, way in (("ours", ours), ("monai", theirs))}
    print(json.dumps({"figure": "bytes kept for the backward pass", **kept}))


def _kept_bytes(way) -> int:  # type: ignore[no-untyped-def]
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        way()
    return sum(sizes.values())


if __name__ == "__main__":
    main()
