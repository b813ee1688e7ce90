"""Make, import or check cohorts as a Ray job: `python jobs/prepare.py phantom --out DIR --cases N --seed S …`."""

from __future__ import annotations

import sys

from hepalign.cli.app import run


def main() -> None:
    """The same words, errors and exit codes as the command line's."""
    run(["data", *sys.argv[1:]])


if __name__ == "__main__":
    main()
