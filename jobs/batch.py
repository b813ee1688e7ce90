"""Plan and guide every case of a cohort in a job: `python jobs/batch.py COHORT --release R --out DIR --workers N`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hepalign.distributed.evaluation import score_cohort
from hepalign.errors import EXIT_FAILED, HepalignError


def main() -> int:
    """Exit 0 when every case was scored, 1 when some failed, 2 and 3 as everywhere."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cohort", help="a cohort's folder or s3:// prefix")
    parser.add_argument("--release", help="a folder, models:/hepalign@champion or a run's URI")
    parser.add_argument("--out", type=Path, required=True, help="one folder a case, and summary.csv")
    parser.add_argument("--workers", type=int, default=0, help="Ray tasks at a time; 0 works in this process")
    words = parser.parse_args()
    try:
        rows = score_cohort(words.cohort, words.release, words.out, workers=words.workers)
    except HepalignError as error:
        print(f"error[{error.code}]: {error.message}", file=sys.stderr)
        return error.exit_code
    failed = [row["case"] for row in rows if row["status"] == "failed"]
    print(f"{len(rows)} cases in {words.out}, {len(failed)} failed {' '.join(failed)}".strip())
    return EXIT_FAILED if failed else 0


if __name__ == "__main__":
    sys.exit(main())
