"""Promote a release as a Ray job: `python jobs/promote.py RELEASE --report DIR --reason WHY`."""

from __future__ import annotations

import sys

from hepalign.cli.app import run


def main() -> None:
    """The same words, errors and exit codes as the command line's."""
    run(["release", "promote", *sys.argv[1:]])


if __name__ == "__main__":
    main()
