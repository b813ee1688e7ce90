"""A Ray cluster of several nodes on this machine, each a process group of its own that can be killed as a whole."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
SUPPORT = Path(__file__).parent
WAIT_S = 240
ATTEMPTS = 3
# A lost node is declared dead after this time, by the health checks that `ray_nodes` sets.
SEEN_LOST_S = 8


@dataclass
class Node:
    """One `ray start`."""

    process: subprocess.Popen[bytes]
    log: Path
    metrics_port: int

    def started(self) -> bool:
        """Whether it has joined."""
        return "Ray runtime started" in self.log.read_text(encoding="utf-8")

    def ended(self) -> bool:
        """Whether it is gone."""
        return self.process.poll() is not None

    def settled(self) -> bool:
        """Whether it has joined, or never will."""
        return self.started() or self.ended()

    def lose(self) -> None:
        """As when the power goes: raylet and workers at once, without a word."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class Nodes:
    """A head without CPUs, and nodes of one CPU that come and go."""

    folder: Path
    port: int
    environment: dict[str, str]
    running: list[Node] = field(default_factory=list)

    def add(self) -> Node:
        """A further node with one CPU."""
        return self._joined("--address", self.address, "--num-cpus", "1")

    def drop_all(self) -> None:
        """Lose every node but the head, and give the head time to see it."""
        for node in self.running[1:]:
            if not node.ended():
                node.lose()
        if self.running[1:]:
            time.sleep(SEEN_LOST_S)
        del self.running[1:]

    @property
    def address(self) -> str:
        """Of the head."""
        return f"127.0.0.1:{self.port}"

    def train(self, settings: Mapping[str, Any], *words: str, **environment: str) -> subprocess.Popen[str]:
        """A driver that trains the toy stage on this cluster."""
        return driver(settings, *words, **self.environment | {"RAY_ADDRESS": self.address} | environment)

    def notice(self, node_id: str) -> None:
        """Tell the cluster that a node will be taken away, as a cloud does before it does."""
        command = [
            BIN / "ray", "drain-node", "--address", self.address, "--node-id", node_id,
            "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken",
            "--deadline-remaining-seconds", "40",
        ]  # fmt: skip
        subprocess.run(command, env=self.environment, check=True, capture_output=True, timeout=WAIT_S)

    def alive(self) -> list[str]:
        """Ids of the nodes that are not the head."""
        code = (
            "import ray, json; ray.init(log_to_driver=False); "
            "print(json.dumps([n['NodeID'] for n in ray.nodes() if n['Alive'] and n['Resources'].get('CPU')]))"
        )
        found = subprocess.run(
            [sys.executable, "-c", code], env=self.environment | {"RAY_ADDRESS": self.address},
            check=True, capture_output=True, text=True, timeout=WAIT_S,
        )  # fmt: skip
        listed: list[str] = json.loads(found.stdout.splitlines()[-1])
        return listed

    def metrics(self) -> set[str]:
        """The names of the series that Prometheus would find on all nodes."""
        found: set[str] = set()
        for node in self.running:
            with contextlib.suppress(OSError):
                page = urllib.request.urlopen(f"http://127.0.0.1:{node.metrics_port}/metrics", timeout=10)
                found |= set(re.findall(r"^(\w+)[{ ]", page.read().decode(), re.MULTILINE))
        return found

    def _start(self, *words: str) -> Node:
        path = self.folder / f"{len(self.running)}-{time.monotonic_ns()}.log"
        metrics_port = free_port()
        command = [BIN / "ray", "start", "--block", "--disable-usage-stats", *words]
        command += ["--metrics-export-port", str(metrics_port)]
        with path.open("w") as log:
            started = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)
        return Node(started, path, metrics_port)

    def start_head(self) -> None:
        """The first of the nodes."""
        words = ["--head", "--num-cpus", "0", "--port", str(self.port), "--include-dashboard", "false"]
        self._joined(*words, "--temp-dir", str(self.folder), "--ray-client-server-port", str(free_port()))

    def _joined(self, *words: str) -> Node:
        """Ray gives a node 30 s to join, which a busy machine may exceed."""
        for _ in range(ATTEMPTS):
            node = self._start(*words)
            until(node.settled, "a node to join")
            if node.started():
                self.running.append(node)
                return node
            node.lose()
        raise AssertionError(node.log.read_text(encoding="utf-8")[-2000:])


@contextmanager
def ray_nodes(**extra_environment: str) -> Iterator[Nodes]:
    """A head, ended with all that was added to it."""
    folder = Path(tempfile.mkdtemp(prefix="rn-"))
    environment = {
        **os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(SUPPORT), "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16), "OMP_NUM_THREADS": "1",
        "RAY_metrics_report_interval_ms": "5000",
        # Ray's workers would give way to whatever else the machine does; here they are what is waited for
        "RAY_worker_niceness": "0",
        # a lost node is noticed within seconds
        "RAY_health_check_initial_delay_ms": "2000", "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "5000", "RAY_health_check_failure_threshold": "4", **extra_environment,
    }  # fmt: skip
    environment.pop("RAY_ADDRESS", None)
    nodes = Nodes(folder, free_port(), environment)
    try:
        nodes.start_head()
        yield nodes
    finally:
        nodes.drop_all()
        for head in nodes.running:
            head.lose()
        shutil.rmtree(folder, ignore_errors=True)


def driver(settings: Mapping[str, Any], *words: str, **environment: str) -> subprocess.Popen[str]:
    """A process of its own that trains the toy stage."""
    return subprocess.Popen(
        [sys.executable, SUPPORT / "train_toy.py", json.dumps(dict(settings)), *words],
        env={**os.environ, "PYTHONPATH": str(SUPPORT), "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> str:
    """What a driver said, once it ended well."""
    said, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, said[-4000:]
    return said


def until(happens: Callable[[], Any], what: str) -> None:
    """Wait for something that must come."""
    deadline = time.monotonic() + WAIT_S
    while not happens():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited in vain for {what}")
        time.sleep(0.2)


def free_port() -> int:
    """A port that nobody listens on, nor will soon: above Ray's workers' and below the system's own choice."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
