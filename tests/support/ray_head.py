"""A Ray head with its jobs API on free ports, in a folder of its own, ended by its own process group."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ray_nodes import free_port

BIN = Path(sys.executable).parent
START_S = 180


@dataclass(frozen=True)
class Head:
    """Where a head listens, and the environment that its clients need."""

    jobs_url: str
    environment: dict[str, str]
    folder: Path

    def submit(self, root: Path, *entrypoint: str) -> subprocess.CompletedProcess[str]:
        """As an ML engineer does it; waits for the job's end."""
        command = [
            BIN / "ray", "job", "submit", "--address", self.jobs_url, "--working-dir", ".",
            "--runtime-env", "jobs/runtime_env.yaml", "--", *entrypoint,
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=root, env=self.environment, capture_output=True, text=True, timeout=600, check=False
        )
        if done.returncode != 0:
            done.stderr += self.said()
        return done

    def said(self) -> str:
        """The ends of what the head and its dashboard wrote: why a job failed stands there if anywhere."""
        logs = [self.folder / "head.log", self.folder / "session_latest/logs/dashboard.log"]
        return "".join(f"\n{log.name}: {log.read_text(encoding='utf-8')[-2000:]}" for log in logs if log.is_file())


@contextmanager
def ray_head(**extra_environment: str) -> Iterator[Head]:
    """Start a head with two CPUs, and end it and all its children with the block."""
    folder = Path(tempfile.mkdtemp(prefix="rh-"))
    port, dashboard = free_port(), free_port()
    environment = {
        **os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16), "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0",
        **extra_environment,
    }  # fmt: skip
    environment.pop("RAY_ADDRESS", None)
    log = (folder / "head.log").open("w")
    process = subprocess.Popen(
        [
            BIN / "ray", "start", "--head", "--block", "--num-cpus", "2", "--temp-dir", folder, "--port", str(port),
            "--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard), "--include-dashboard", "true",
            "--ray-client-server-port", str(free_port()), "--disable-usage-stats",
            "--dashboard-agent-listen-port", str(free_port()),
        ],
        env=environment, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    head = Head(f"http://127.0.0.1:{dashboard}", environment, folder)
    try:
        _wait_for(head, process)
        yield head
    finally:
        # at once: nothing of it is needed any more, and an orderly end takes longer than most tests
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(head: Head, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    request = urllib.request.Request(
        f"{head.jobs_url}/api/jobs/", headers={"Authorization": f"Bearer {head.environment['RAY_AUTH_TOKEN']}"}
    )
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"the Ray head did not come up:{head.said()}")
