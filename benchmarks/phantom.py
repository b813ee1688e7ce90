"""Seconds of one core to make a phantom triplet (pMR, pCT, iCT with probe and streaks, masks, landmarks, fields).

Usage: python benchmarks/phantom.py [--seeds 3]
"""

from __future__ import annotations

import argparse
import time

import torch

from hepalign.cases.phantom import make_case
from timing import single

TARGETS_S = {(128, 128, 96): 5.0, (256, 256, 128): 40.0}


def main() -> None:
    """Print the seconds of each size; other seeds, other anatomies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    words = parser.parse_args()
    torch.set_num_threads(1)
    make_case(0, shape=(32, 32, 32))
    for shape, target in TARGETS_S.items():
        seconds = []
        for seed in range(words.seeds):
            start = time.process_time()
            make_case(seed, shape=shape)
            seconds.append(time.process_time() - start)
        single(f"phantom triplet {'×'.join(map(str, shape))}", seconds, "s of one core", at_most=target)


if __name__ == "__main__":
    main()
