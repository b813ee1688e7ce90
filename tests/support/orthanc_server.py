"""A real Orthanc on this machine, with one account and nothing but HTTP on loopback."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

USER, PASSWORD = "relay", "of-this-test"


@dataclass
class Running:
    """An Orthanc with one account."""

    url: str

    def call(self, method: str, path: str, **words: Any) -> Any:
        answer = httpx2.request(method, self.url + path, auth=(USER, PASSWORD), timeout=60, **words)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def send(self, folder: Path) -> str:
        """Stores a folder's files; Orthanc's id of their series."""
        series = {
            self.call("POST", "/instances", content=path.read_bytes())["ParentSeries"] for path in folder.iterdir()
        }
        (found,) = series
        return str(found)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def orthanc_server(folder: Path) -> Iterator[Running]:
    """Runs until the block ends."""
    folder.mkdir(exist_ok=True)
    port = free_port()
    settings = {
        "HttpPort": port, "DicomPort": free_port(), "DicomServerEnabled": False, "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True, "RegisteredUsers": {USER: PASSWORD},
        "StorageDirectory": str(folder / "store"), "IndexDirectory": str(folder / "store"),
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(settings), encoding="utf-8")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log)
    running, until = Running(f"http://127.0.0.1:{port}"), time.monotonic() + 60
    try:
        while time.monotonic() < until:
            try:
                running.call("GET", "/system")
                break
            except httpx2.TransportError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.1)
        yield running
    finally:
        process.terminate()
        process.wait(30)
