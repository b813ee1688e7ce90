"""What a cluster's refusal tells who asked."""

from __future__ import annotations

import pytest
import ray

from hepalign.distributed.cluster import ray_session
from hepalign.errors import WorkFailedError


@pytest.mark.parametrize(
    ("cause", "mend"),
    [
        ("RPC error: InvalidAuthToken: Authentication token is missing or incorrect", "RAY_AUTH_TOKEN"),
        ("Version mismatch: The cluster was started with: Ray: 2.40.0", "requirements.lock"),
        ("timed out", "start one"),
    ],
)
def test_the_mend_follows_the_refusal(monkeypatch: pytest.MonkeyPatch, cause: str, mend: str) -> None:
    def refuse(**_: object) -> None:
        raise ConnectionError("Failed to connect") from RuntimeError(cause)

    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(WorkFailedError, match=mend) as caught, ray_session():
        raise AssertionError
    assert caught.value.code == "cluster_unreachable"


def test_a_machine_too_busy_to_start_ray_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "known")
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(WorkFailedError, match="did not start on this machine") as caught, ray_session():
        raise AssertionError
    assert caught.value.code == "cluster_unreachable"
