"""How soon the command line answers: `--help`, the first work of `register`, and a service that is ready.

Usage: python benchmarks/starts.py [--rounds 5]
Measured from outside the processes, after one start that does not count (files in the page cache).
`register` to its first work: the whole command on a tiny pair, less the seconds of work that its result states.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hepalign.cases.phantom import make_case
from hepalign.image.nifti import write_nifti
from timing import single

HEPALIGN = str(Path(sys.executable).parent / "hepalign")
TINY = (48, 48, 48)


def main() -> None:
    """Print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        single("hepalign --help", repeated(helped, words.rounds), "s", at_most=0.5)
        made = make_case(0, shape=TINY)
        for role in ("pct", "ict"):
            write_nifti(made.volumes[role], folder / f"{role}.nii.gz")
        single("hepalign register, start to first work", repeated(lambda: registered(folder), words.rounds), "s",
               at_most=4)  # fmt: skip
        single("serve cold start", repeated(lambda: served(folder), 2), "s", at_most=30)


def repeated(way: Callable[[], float], rounds: int) -> list[float]:
    """Seconds of each round after one that does not count."""
    return [way() for _ in range(rounds + 1)][1:]


def helped() -> float:
    """The whole command."""
    start = time.perf_counter()
    subprocess.run([HEPALIGN, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def registered(folder: Path) -> float:
    """The whole command less the work that it reports."""
    call = [HEPALIGN, "register", "--moving", str(folder / "pct.nii.gz"), "--fixed", str(folder / "ict.nii.gz"),
            "--out", str(folder / "out"), "--engine", "fast", "--json"]  # fmt: skip
    start = time.perf_counter()
    done = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True)
    whole = time.perf_counter() - start
    return whole - sum(json.loads(done.stdout)["timings"].values())


def served(folder: Path) -> float:
    """Until the service prints its address, which it does when it is ready."""
    config = folder / "serve.yaml"
    config.write_text(f"port: 0\ndata_folder: {folder / 'service'}\n", encoding="utf-8")
    start = time.perf_counter()
    service = subprocess.Popen([HEPALIGN, "serve", "--config", str(config)], stderr=subprocess.PIPE, text=True)
    try:
        assert service.stderr is not None
        said = []
        for line in service.stderr:
            said.append(line)
            if line.startswith("serving at"):
                return time.perf_counter() - start
        raise RuntimeError(f"the service ended with {service.wait()}: {''.join(said[-5:])}")
    finally:
        service.terminate()
        service.wait(timeout=60)


if __name__ == "__main__":
    main()
