"""What locust runs for load.py: sites that guide, each answer noted as one line of JSON.

The environment says where: HEPALIGN_TOKEN, LOAD_CASES (ids, comma-separated), LOAD_RATE (guides a second of all users
together; empty: each sends the next as soon as it has an answer), LOAD_USERS, LOAD_LOG.
"""

from __future__ import annotations

import json
import os
import random
import time
import uuid
from pathlib import Path
from typing import Any

from locust import HttpUser, task

CASES = os.environ["LOAD_CASES"].split(",")
RATE = float(os.environ["LOAD_RATE"] or 0)
LOG = Path(os.environ["LOAD_LOG"])
HEADERS = {"Authorization": f"Bearer {os.environ['HEPALIGN_TOKEN']}", "Prefer": "wait=60"}


class Site(HttpUser):
    """Asks for guides of cases that are planned."""

    def wait_time(self) -> float:
        """Sites do not know of each other, so they ask at random times: seconds until this one's next request."""
        return random.expovariate(RATE / int(os.environ["LOAD_USERS"])) if RATE else 0.0

    def on_start(self) -> None:
        """Nor do they begin together."""
        time.sleep(self.wait_time())

    @task
    def guide(self) -> None:
        """One guide, waited for."""
        began = time.time()
        path = f"/v1/cases/{random.choice(CASES)}/guide"
        headers = HEADERS | {"Idempotency-Key": uuid.uuid4().hex}
        with self.client.post(path, json={"engine": "fast"}, headers=headers, name="guide", catch_response=True) as got:
            note(began, got)
            if got.status_code in (200, 202, 429, 503):
                got.success()


def note(began: float, got: Any) -> None:
    """One line of an answer."""
    line = {"began": began, "seconds": got.elapsed.total_seconds() if got.elapsed else None, "status": got.status_code}
    line["retry_after"] = got.headers.get("Retry-After") if got.headers else None
    if got.status_code == 200:
        line["compute_s"] = got.json()["result"]["timings"]["compute_s"]
    elif got.status_code in (429, 503):
        line["code"] = got.json().get("code")
    with LOG.open("a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")
