"""Train the ablations that need weights of their own, on the cohorts that the starter release was trained on.

Command: python jobs/ablations.py [NAME …] [--out runs/reproduce]
Expected time: 15 minutes of a CPU core for each inpainting network, for the synthesis what its config says; broken off,
it goes on where it stood. Then: hepalign evaluate COHORT --ablate NAME=STAGE:FOLDER, as it prints.
With HEPALIGN_REAL_DATA it trains on what `make reproduce` trains on with it; without, on phantoms alone.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from hepalign.cli.reproduce import make_cohorts
from hepalign.config import load_config
from hepalign.distributed.workers import train
from hepalign.errors import HepalignError
from hepalign.evaluation.variants import TRAINED_ABLATIONS

# The inpainting networks' scores are flat from the second epoch on; all three differ in nothing but their kind.
SHORTER = {"inpainting": ["training.epochs=8"]}


def main() -> int:
    """Exit 0 when all that were asked for are trained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TRAINED_ABLATIONS)}; default all")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"))
    words = parser.parse_args()
    if unknown := set(words.names) - set(TRAINED_ABLATIONS):
        parser.error(f"no trained ablation is called {', '.join(sorted(unknown))}")
    out = words.out.resolve()
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{out / 'mlflow.db'}"
    try:
        cohorts = make_cohorts(out / "cohorts")
        for name in words.names or TRAINED_ABLATIONS:
            stage, changes = TRAINED_ABLATIONS[name]
            places = f"data.cohorts=[{','.join(map(str, cohorts[stage]))}]", f"out={out / 'ablations'}", f"name={name}"
            settings = [*places, *changes.split(), *SHORTER.get(stage, [])]
            config = load_config(stage, Path("jobs/configs") / f"{stage}.yaml", settings)
            print(f"--ablate {name}={stage}:{train(config, resume=True).folder}", flush=True)
    except HepalignError as error:
        print(f"error[{error.code}]: {error.message}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
