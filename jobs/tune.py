"""Search settings as a Ray job: `python jobs/tune.py inpainting --config jobs/configs/tune-inpainting.yaml`."""

from __future__ import annotations

import sys

from hepalign.cli.app import run


def main() -> None:
    """The same words, errors and exit codes as the command line's."""
    run(["tune", *sys.argv[1:]])


if __name__ == "__main__":
    main()
