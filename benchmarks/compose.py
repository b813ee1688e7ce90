"""Composing two fields and resampling three volumes once, next to SimpleITK: the same answer, then the time.

Usage: python benchmarks/compose.py [--shape 256,256,128] [--threads 2] [--rounds 9]
Peer: SimpleITK's composite of two displacement field transforms. Its faster way is taken: the composite is written
out once (TransformToDisplacementField) and three resamplings read it. Wall seconds, both with the same threads.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import SimpleITK as sitk
import torch

from hepalign.evaluation.baselines.itk_images import LPS, lps_frame, to_itk
from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume
from hepalign.inference.heap import reuse_freed_memory
from hepalign.transform.displacement import DisplacementField, compose
from hepalign.transform.warp import warp_together
from timing import interleaved, ratio

FIELD_OF_VIEW_MM = 358.4


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="256,256,128")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    words = parser.parse_args()
    # as in any process that has loaded a release; SimpleITK allocates the same way
    reuse_freed_memory()
    torch.set_num_threads(words.threads)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(words.threads)
    shape = tuple(int(n) for n in words.shape.split(","))
    spacing = FIELD_OF_VIEW_MM / shape[0]
    geometry = Geometry(shape, np.diag([spacing, spacing, spacing, 1.0]))
    before, during = _breathing(geometry, 12.0), _breathing(geometry, -9.0)
    volumes = [Volume(_texture(shape, seed), geometry) for seed in range(3)]
    images = [to_itk(volume) for volume in volumes]
    fields = [_itk_field(field) for field in (before, during)]

    def ours() -> list[Volume]:
        through = compose(before, during)
        return warp_together(volumes, through, fills=[0.0] * len(volumes))

    def theirs() -> list[sitk.Image]:
        # SimpleITK applies the transform that was added last first
        chain = sitk.CompositeTransform([sitk.DisplacementFieldTransform(sitk.Image(field)) for field in fields])
        written = sitk.TransformToDisplacementField(
            chain, sitk.sitkVectorFloat64, images[0].GetSize(), images[0].GetOrigin(), images[0].GetSpacing(),
            images[0].GetDirection(),
        )  # fmt: skip
        through = sitk.DisplacementFieldTransform(written)
        return [sitk.Resample(image, images[0], through, sitk.sitkLinear, 0.0) for image in images]

    inner = tuple(slice(n // 6, -n // 6) for n in shape)
    for own, peer in zip(ours(), theirs(), strict=True):
        their_data = np.transpose(sitk.GetArrayViewFromImage(peer))
        np.testing.assert_allclose(own.data[inner], their_data[inner], atol=2e-3)
    times = interleaved({"ours": ours, "SimpleITK": theirs}, words.rounds, time.perf_counter)
    ratio(
        f"SimpleITK's composition and three resamplings over ours, {words.shape.replace(',', '×')}",
        times, "SimpleITK", "ours", at_least=3, threads=words.threads,
    )  # fmt: skip


def _breathing(geometry: Geometry, peak_mm: float) -> DisplacementField:
    i, j, k = (np.linspace(0, np.pi, n, dtype=np.float32) for n in geometry.shape)
    hump = np.sin(i)[:, None, None] * np.sin(j)[None, :, None] * np.sin(k)[None, None, :]
    vectors = np.stack([0.2 * hump, 0.4 * hump, hump], axis=-1) * np.float32(peak_mm)
    return DisplacementField(vectors.astype(np.float32), geometry)


def _texture(shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    axes = [np.cos(rng.uniform(0.02, 0.2) * np.arange(n, dtype=np.float32) + seed) for n in shape]
    return axes[0][:, None, None] * axes[1][None, :, None] * axes[2][None, None, :]


def _itk_field(field: DisplacementField) -> sitk.Image:
    vectors = np.ascontiguousarray(np.transpose(field.vectors, (2, 1, 0, 3)) * LPS, dtype=np.float64)
    image = sitk.GetImageFromArray(vectors, isVector=True)
    origin, spacing, direction = lps_frame(field.geometry)
    image.SetOrigin(origin)
    image.SetSpacing(spacing)
    image.SetDirection(direction.ravel().tolist())
    return image


if __name__ == "__main__":
    main()
