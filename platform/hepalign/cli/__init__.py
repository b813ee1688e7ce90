"""The `hepalign` command: a thin face over the library's functions."""

from __future__ import annotations


def main() -> None:
    """Run the command line; never returns normally (it exits with CONTRACT's status)."""
    from hepalign.cli.app import run

    run()
