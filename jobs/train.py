"""Train a stage as a Ray job: `python jobs/train.py inpainting --config jobs/configs/inpainting.yaml [a.b=c …]`."""

from __future__ import annotations

import sys

from hepalign.cli.app import run


def main() -> None:
    """The same words, errors and exit codes as the command line's."""
    run(["train", *sys.argv[1:]])


if __name__ == "__main__":
    main()
