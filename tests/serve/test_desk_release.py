"""How the lanes change over to the release that is wanted: replicas that answer when the test says so, no Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hepalign_serve import desk as desk_module
from hepalign_serve.desk import Desk
from hepalign_serve.metrics import Metrics
from hepalign_serve.run import prepare
from hepalign_serve.settings import Settings
from hepalign_serve.task import Pinned

FIRST, SECOND = (Pinned(digit * 64, "hepalign", digit, {}) for digit in "12")


class Replica:
    """A lane's only replica, as the desk's handle: it is warm once it is free."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.asked: list[Pinned] = []

    @property
    def warm(self) -> Replica:
        return self

    async def remote(self, release: Pinned) -> dict[str, Any]:
        self.asked.append(release)
        await self.free.wait()
        return {}


async def until(condition: Callable[[], bool], within_s: float = 20.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)


def test_a_rollback_reaches_guides_while_a_plan_keeps_its_lane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [FIRST]
    monkeypatch.setattr(desk_module, "pin", lambda *_, **__: wanted[-1])
    monkeypatch.setattr(desk_module.logs, "configure", lambda *_: None)
    monkeypatch.setattr(Metrics, "expose", lambda *_: None)
    settings = Settings(data_folder=tmp_path, release_poll_s=0.05)
    prepare(settings).engine.dispose()

    async def run() -> None:
        planning, registration = Replica(), Replica()
        registration.free.set()
        desk = Desk(settings, planning, registration, None)  # type: ignore[arg-type]
        try:
            for release in (FIRST, SECOND, FIRST):
                wanted.append(release)
                await until(lambda release=release: desk._releases.get("guide") == release)  # type: ignore[misc]
            assert "plan" not in desk._releases
            wanted.append(SECOND)
            await until(lambda: desk._releases["guide"] == SECOND)
            planning.free.set()
            # What was wanted when the plan's replica was asked is not what it serves with once it is free.
            await until(lambda: "plan" in desk._releases)
            assert desk._releases["plan"] == SECOND
            assert planning.asked == [FIRST, SECOND]
        finally:
            for task in desk._tasks:
                task.cancel()

    asyncio.run(run())
