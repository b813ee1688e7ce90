"""What bfloat16 gains in inference on a full volume, and what it costs in accuracy.

Usage: python benchmarks/precision.py [--shape 256,256,128] [--rounds 5]
The registration network's field and the inpainted iCT with convolutions in bfloat16 next to float32, same weights,
same images, in turns; warps, sums and losses are float32 in both. int8 is not compared: torch has no quantised 3D
transposed convolution or group norm on CPUs, so that most layers would convert back and forth.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from unittest.mock import patch

import numpy as np
import torch

from hepalign.inference.affine import affine_start
from hepalign.inference.inpaint import inpaint
from hepalign.inference.pair import Levels, make_pair
from hepalign.inference.register import predict
from hepalign.nets.precision import bfloat16_gains
from scene import release, scene
from timing import interleaved, ratio, single

PLACES = ("hepalign.inference.register.autocast", "hepalign.inference.inpaint.autocast")


def main() -> None:
    """Print the gains and the differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="256,256,128")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    size = [int(n) for n in words.shape.split(",")]
    bundle, case = release(), scene((size[0], size[1], size[2]), seed=7000)
    start = affine_start(case.plan.pct, case.ict).matrix
    levels = Levels(make_pair(case.plan.pct, case.ict, start, case.probe_mask))
    coarse = levels.coarse()
    spacing_mm = max(levels.half_geometry.spacing_mm)
    ways = {
        "registration network": lambda: predict(bundle, levels, coarse)[0].numpy() * spacing_mm,
        "inpainting": lambda: inpaint(bundle, case.ict, case.probe_mask, None).image.data,
    }
    for name, way in ways.items():
        reduced, full = way(), in_float32(way)
        times = interleaved(
            {"bfloat16": way, "float32": lambda way=way: in_float32(way)}, words.rounds, time.perf_counter
        )
        ratio(f"{name}: float32 over bfloat16", times, "float32", "bfloat16", machine_gains=bfloat16_gains("cpu"))
        unit = "mm" if name.startswith("registration") else "HU"
        difference = np.abs(np.asarray(reduced, np.float32) - np.asarray(full, np.float32))
        changed = difference[difference > 0]
        mean = float(changed.mean()) if changed.size else 0.0
        single(f"{name}: bfloat16's mean difference from float32", [mean], unit, largest=float(difference.max()))


def in_float32(way):  # type: ignore[no-untyped-def]
    """The same without reduced precision."""
    with patch(PLACES[0], lambda *_, **__: nullcontext()), patch(PLACES[1], lambda *_, **__: nullcontext()):
        return way()


if __name__ == "__main__":
    main()
