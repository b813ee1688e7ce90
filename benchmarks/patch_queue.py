"""CPU seconds of one augmented training patch: ours against TorchIO's queue, from the same cohort.

Usage: python benchmarks/patch_queue.py [--size 128] [--patch 64] [--patches 24]
Peer: torchio.Queue over whole subjects that torchio.RandomAffine turns, 4 patches a volume as ours takes; CPU time, not
wall time, so that a busy machine changes nothing. See docs/adr/0007.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import torch
import torchio as tio

from hepalign.cases.cohort import Cohort, open_cohort
from hepalign.cases.datasets import InpaintingData, inpainting_loader
from hepalign.cases.sources.generate import phantom_cohort
from timing import ratio

PATCHES_A_VOLUME = 4


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--patches", type=int, default=24)
    words = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HEPALIGN_CACHE"] = f"{folder}/cache"
        shape, spacing_mm = (words.size,) * 3, 320 / words.size
        phantom_cohort(f"{folder}/cohort", cases=3, seed=0, shape=shape, spacing_mm=spacing_mm)
        cohort = open_cohort(Path(folder) / "cohort")
        config = InpaintingData(
            patch=(words.patch,) * 3, spacing_mm=spacing_mm, targets=("pct",), samples_per_case=PATCHES_A_VOLUME
        )
        epochs = range(1 + words.patches // 4)
        # the first epoch prepares the arrays, as the first training epoch does
        list(inpainting_loader([cohort], config, "train", seed=0, epoch=0))
        ours = cpu_seconds(
            (batch for epoch in epochs for batch in inpainting_loader([cohort], config, "train", seed=0, epoch=epoch)),
            words.patches,
        )
        theirs = cpu_seconds((batch for _ in epochs for batch in queue(cohort, words.patch)), words.patches)
        times = {"ours": [ours], "torchio.Queue": [theirs]}
        ratio(
            "CPU of an augmented patch",
            times,
            "torchio.Queue",
            "ours",
            at_least=1,
            patch=words.patch,
            volume=words.size,
        )


def queue(cohort: Cohort, patch: int) -> Iterable[object]:
    """TorchIO's way: read a whole subject, turn it, cut patches from it, shuffle them in a queue."""
    subjects = [
        tio.Subject(image=tio.ScalarImage(cohort.path(case, "pct")), body=tio.LabelMap(cohort.path(case, "pct_liver")))
        for case in cohort.cases("train")
    ]
    turned = tio.RandomAffine(scales=0.1, degrees=10)
    patches = tio.Queue(
        tio.SubjectsDataset(subjects, transform=turned), max_length=16, samples_per_volume=PATCHES_A_VOLUME,
        sampler=tio.UniformSampler(patch), num_workers=0,
    )  # fmt: skip
    return tio.SubjectsLoader(patches, batch_size=1, num_workers=0)


def cpu_seconds(batches: Iterable[object], count: int) -> float:
    """CPU seconds a batch, all threads."""
    start = time.process_time()
    made = sum(1 for _ in islice(batches, count))
    return (time.process_time() - start) / made


if __name__ == "__main__":
    main()
