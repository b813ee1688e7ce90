"""How guide's seconds grow with the voxels, and the most memory that it holds, from 64³ to 512×512×256.

Usage: python benchmarks/scaling.py [--rounds 2] [--threads 2]
Each size in a process of its own, so that its peak memory is its own (the images and the plan included). The exponent
is the slope of log seconds over log voxels; below the grid on which the network works, cost is all but constant, so
the steepest step between two sizes that follow each other is printed as well.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time

import numpy as np
import torch

from hepalign.inference.guide import guide
from scene import release, scene
from timing import single

SIZES = ((64, 64, 64), (128, 128, 96), (256, 256, 128), (384, 384, 192), (512, 512, 256))
MEMORY_TARGETS_GIB = {(256, 256, 128): 3.0, (512, 512, 256): 14.0}


def main() -> None:
    """Print the exponent and the peaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default=None, help="one size, measured in this process: what the children do")
    words = parser.parse_args()
    if words.only:
        size = [int(n) for n in words.only.split(",")]
        print(json.dumps(measure((size[0], size[1], size[2]), words.rounds, words.threads)))
        return
    voxels, seconds = [], []
    for shape in SIZES:
        call = [sys.executable, __file__, "--only", ",".join(map(str, shape)), "--rounds", str(words.rounds)]
        done = subprocess.run([*call, "--threads", str(words.threads)], check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout)
        voxels.append(math.prod(shape))
        seconds.append(min(found["seconds"]))
        name = "×".join(map(str, shape))
        single(f"guide fast {name}, with the result's volumes", found["seconds"], "s")
        single(f"guide's peak memory {name}", [found["peak_gib"]], "GiB", at_most=MEMORY_TARGETS_GIB.get(shape))
    slope = float(np.polyfit(np.log(voxels), np.log(seconds), 1)[0])
    steps = np.diff(np.log(seconds)) / np.diff(np.log(voxels))
    single("guide's cost against voxels, exponent", [slope], "", at_most=1.05, steepest=round(float(steps.max()), 3))


def measure(shape: tuple[int, int, int], rounds: int, threads: int) -> dict[str, object]:
    """Seconds of each round (after one that does not count) and the process's peak memory."""
    torch.set_num_threads(threads)
    bundle, case = release(), scene(shape, seed=7000)
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        guide(bundle, case.plan, case.ict, case.probe_mask, engine="fast")
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": seconds[1:], "peak_gib": round(peak, 3)}


if __name__ == "__main__":
    main()
