"""Guide (inpaint, register, warp MR, CT and labels) next to greedy and ANTs SyN on the same pair: seconds and TRE.

Usage: python benchmarks/guide.py [--shape 256,256,128] [--cases 2] [--rounds 3] [--peers greedy-wncc ants-syn]
Peers: as in `hepalign evaluate` (settings there), probe mask given, registration only (no inpainting, no warping of
the MR and the labels), threads pinned like ours, timed in their own process without its start. Ours: warm, in process.
The release is the one that HEPALIGN_RELEASE names, else the champion, else the starter.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from hepalign.evaluation.baselines import BASELINES
from hepalign.evaluation.baselines.isolated import run_apart
from hepalign.inference.bundle import Bundle
from hepalign.inference.guide import guide
from hepalign.inference.register import Engine
from scene import Scene, release, scene
from timing import ratio, single

ENGINES: tuple[Engine, ...] = ("fast", "refine")
PEERS = ["greedy-wncc", "greedy-nmi", "ants-syn"]


def main() -> None:
    """Print seconds, ratios and errors; a ratio's spread is over cases and rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="256,256,128")
    parser.add_argument("--cases", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=7000)
    parser.add_argument("--peers", nargs="+", default=PEERS, choices=list(BASELINES))
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    bundle = release()
    names = [*ENGINES, *words.peers]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    errors: dict[str, list[float]] = {name: [] for name in names}
    size = [int(n) for n in words.shape.split(",")]
    for seed in range(words.first_seed, words.first_seed + words.cases):
        case = scene((size[0], size[1], size[2]), seed)
        warm(bundle, case)
        last: dict[str, float] = {}
        for _ in range(words.rounds):
            for engine in ENGINES:
                start = time.perf_counter()
                result = guide(bundle, case.plan, case.ict, case.probe_mask, engine=engine)
                seconds[engine].append(time.perf_counter() - start)
                last[engine] = case.error_mm(result.field_ict_from_pct)
        for engine, error_mm in last.items():
            errors[engine].append(error_mm)
        for peer in words.peers:
            task = BASELINES[peer].task(
                case.plan.pct, case.ict, fixed_mask=~case.probe_mask.as_mask(), threads=words.threads
            )
            (found,) = run_apart([task])
            if isinstance(found, str):
                raise SystemExit(f"{peer}: {found}")
            seconds[peer] += [found.seconds] * words.rounds
            errors[peer].append(case.error_mm(found.field))
    state(seconds, errors, words.peers, words.shape.replace(",", "×"))


def warm(bundle: Bundle, case: Scene) -> None:
    """A first call that does not count."""
    guide(bundle, case.plan, case.ict, case.probe_mask, engine="fast")


def state(seconds: dict[str, list[float]], errors: dict[str, list[float]], peers: list[str], shape: str) -> None:
    """The figures of the table."""
    mean_mm = {name: round(statistics.mean(values), 3) for name, values in errors.items()}
    single(f"guide fast {shape}", seconds["fast"], "s", at_most=5, tre_mm=mean_mm)
    single(f"guide refine {shape}", seconds["refine"], "s", tre_mm=mean_mm)
    greedy = [peer for peer in peers if peer.startswith("greedy")]
    if greedy:
        faster = min(greedy, key=lambda peer: statistics.median(seconds[peer]))
        ratio(f"{faster} (the faster greedy) over guide fast, {shape}", seconds, faster, "fast", at_least=8)
        ratio(f"{faster} (the faster greedy) over guide refine, {shape}", seconds, faster, "refine", at_least=2)
    if "ants-syn" in peers:
        ratio(f"ANTs SyN over guide fast, {shape}", seconds, "ants-syn", "fast", at_least=15)
    best = min(mean_mm[peer] for peer in peers)
    single(f"TRE of fast less the best peer's, {shape}", [mean_mm["fast"] - best], "mm", at_most=0.3)
    single(f"TRE of refine less the best peer's, {shape}", [mean_mm["refine"] - best], "mm", at_most=0.0)


if __name__ == "__main__":
    main()
