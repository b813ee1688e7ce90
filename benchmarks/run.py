"""Run every benchmark and write what they print, with the machine, to docs/performance.md."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
NO_BENCHMARKS = {"run.py", "timing.py"}


def main() -> None:
    """One after the other, so that none disturbs another; a failing one is named and fails the run."""
    sections = []
    failed = []
    for script in sorted(path for path in HERE.glob("*.py") if path.name not in NO_BENCHMARKS):
        print(f"== {script.name}", file=sys.stderr, flush=True)
        done = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, check=False)
        sections.append(f"## {script.stem}\n\n```text\n{done.stdout.strip()}\n```\n")
        if done.returncode:
            failed.append(script.name)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {platform.system()}"
    page = HERE.parent / "docs/performance.md"
    head = f"# Performance\n\nMeasured by `make bench` on: {machine}.\n\n"
    page.write_text(head + "\n".join(sections), encoding="utf-8")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
