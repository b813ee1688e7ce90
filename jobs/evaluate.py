"""Evaluate a release as a Ray job: `python jobs/evaluate.py COHORT --release R --out DIR --workers N`."""

from __future__ import annotations

import sys

from hepalign.cli.app import run


def main() -> None:
    """The same words, errors and exit codes as the command line's."""
    run(["evaluate", *sys.argv[1:]])


if __name__ == "__main__":
    main()
