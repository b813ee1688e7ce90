"""The registration network next to PyPI's voxelmorph of the same widths: forward pass and training step.

Usage: python benchmarks/voxelmorph_network.py [--device cuda] [--shape 128 128 96]
Peer: voxelmorph.nn.models.VxmPairwise as it comes (float32, features 16, 32, 32, 32, 32, 5 integration steps), trained
on its own losses (neurite's NCC and SpatialGradient). Forward: two images to a displacement on their grid. Training
step: forward, the stage's own losses, backward, optimiser. One thread on the CPU, the same inputs, turns taken.
"""

from __future__ import annotations

import argparse

import neurite
import torch
import torch.nn.functional as F
import voxelmorph
from torch import Tensor

from hepalign.nets.precision import autocast, channels_last
from hepalign.nets.regnet import RegNet, RegNetConfig, network_inputs, upsample_field
from hepalign.stages.registration import RegistrationConfig, RegistrationStage
from hepalign.transform.velocity import integrate
from timing import interleaved, ratio

WIDTHS = (16, 32, 32, 32, 32)
# bfloat16 has eight bits: a field of some voxels is known to some hundredths.
TOLERANCE_VOXELS = 0.1


def main() -> None:
    """Print the two ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", type=int, nargs=3, default=(128, 128, 96))
    parser.add_argument("--rounds", type=int, default=3)
    words = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = torch.device(words.device)
    i, j, k = words.shape
    moving, fixed = (_blobs(n, (i, j, k)).to(device) for n in (0, 1))
    ours = channels_last(RegNet(RegNetConfig(encoder_channels=WIDTHS[0], level_channels=WIDTHS[1])).to(device)).eval()
    theirs = voxelmorph.nn.models.VxmPairwise(3, 1, 1, nb_features=WIDTHS, device=str(device)).to(device).eval()

    def predict(*, reduced: bool = True) -> Tensor:
        with torch.inference_mode(), autocast(device, enabled=reduced):
            return upsample_field(integrate(ours(network_inputs(moving, fixed))))

    def predict_theirs() -> Tensor:
        with torch.inference_mode():
            field: Tensor = theirs(moving, fixed)
        return field

    gap = float((predict() - predict(reduced=False)).abs().max())
    assert gap < TOLERANCE_VOXELS, f"bfloat16 and float32 differ by {gap:.3f} voxels"
    assert predict_theirs().shape == predict().shape
    size = "x".join(map(str, words.shape))
    times = interleaved({"ours": predict, "voxelmorph": predict_theirs}, words.rounds)
    ratio(
        f"registration network vs voxelmorph, forward, {size}",
        times,
        "voxelmorph",
        "ours",
        at_least=3,
        bf16_gap_voxels=gap,
    )
    ways = {"ours": _our_step(moving, fixed, device), "voxelmorph": _their_step(theirs.train(), moving, fixed)}
    times = interleaved(ways, words.rounds)
    ratio(f"registration network vs voxelmorph, training step, {size}", times, "voxelmorph", "ours", at_least=2)


def _our_step(moving: Tensor, fixed: Tensor, device: torch.device):  # type: ignore[no-untyped-def]
    stage = RegistrationStage(RegistrationConfig(), [], device)
    one = torch.ones_like(moving)
    batch: dict[str, object] = {
        "moving": moving, "fixed": fixed, "fixed_mask": one, "moving_liver": one, "fixed_liver": one,
        "has_liver": torch.tensor([True]), "has_field": torch.tensor([True]),
        "field": torch.zeros(1, 3, *moving.shape[2:]),
    }  # fmt: skip

    def step() -> None:
        for update in stage.updates(batch):
            update.optimizer.zero_grad()
            update.loss.backward()
            update.optimizer.step()

    return step


def _their_step(net: torch.nn.Module, moving: Tensor, fixed: Tensor):  # type: ignore[no-untyped-def]
    likeness, roughness = neurite.nn.modules.NCC(), neurite.nn.modules.SpatialGradient("l2")
    optimizer = torch.optim.Adam(net.parameters(), 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        field, warped = net(moving, fixed, return_warped_source=True)
        loss = -likeness(warped, fixed).mean() + roughness(field)
        loss.backward()
        optimizer.step()

    return step


def _blobs(seed: int, shape: tuple[int, int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 1, *(n // 8 for n in shape), generator=generator)
    return F.interpolate(coarse, size=shape, mode="trilinear").clamp(-1, 1)


if __name__ == "__main__":
    main()
