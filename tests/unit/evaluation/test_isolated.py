"""Peers' own processes: what comes back, what a crash, a hang and a complaint become."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hepalign.evaluation.baselines import isolated
from hepalign.evaluation.baselines.task import Registered, Task
from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume
from hepalign.transform.displacement import DisplacementField
from hepalign.transform.linear import translation

GRID = Geometry.from_spacing((12, 10, 8), (3.0, 4.0, 5.0), origin_mm=(1.0, 2.0, 3.0))

PLAYERS = r"""
import os, signal, time
import numpy as np
from hepalign.transform.displacement import DisplacementField
from hepalign.transform.linear import translation


def shift(problem):
    return DisplacementField.from_linear(translation(np.array([1.0, 2.0, 3.0])), problem.fixed.geometry)


def shift_forward_only(problem):
    if problem.modalities[1] == "mr":
        raise RuntimeError("not this way")
    return shift(problem)


def threads(problem):
    words = ("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    assert [os.environ[word] for word in words] == [str(problem.threads)] * 3
    import SimpleITK as sitk
    import torch
    assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == problem.threads
    assert torch.get_num_threads() == problem.threads
    return shift(problem)


def complain(problem):
    raise ValueError("no overlap\nat all")


def crash(problem):
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(problem):
    time.sleep(60)


def hoard(problem):
    full = np.ones(40_000_000)  # 320 MB
    return shift(problem) if full.all() else None
"""


def task(player: str, *, threads: int = 1, both_ways: bool = False) -> Task:
    rng = np.random.default_rng(0)
    image = Volume(rng.normal(size=GRID.shape).astype(np.float32), GRID)
    return Task(f"players.{player}", image, image, np.ones(GRID.shape, bool), ("mr", "ct"), threads, 0, both_ways)


TASKS = {
    "plain": task("shift"),
    "both": task("shift", both_ways=True),
    "one way": task("shift_forward_only", both_ways=True),
    "one thread": task("threads"),
    "complaint": task("complain"),
    "hoard": task("hoard"),
    "after the hoard": task("shift"),
    "crash": task("crash"),
    "after the crash": task("shift"),
}


@pytest.fixture(scope="module")
def players(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module of stand-ins for peers that a child finds among the baselines."""
    folder = tmp_path_factory.mktemp("players")
    (folder / "players.py").write_text(PLAYERS, encoding="utf-8")
    hook = f"import hepalign.evaluation.baselines as found\nfound.__path__.append({str(folder)!r})\n"
    (folder / "sitecustomize.py").write_text(hook, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def found(players: Path) -> dict[str, Registered | str]:
    """All tasks in one call: two processes, as one of them ends its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(players))
        return dict(zip(TASKS, isolated.run_apart(list(TASKS.values())), strict=True))


def done(result: Registered | str) -> Registered:
    assert isinstance(result, Registered), result
    return result


def test_field_comes_back_whole_with_its_linear_part(found: dict[str, Registered | str]) -> None:
    plain = done(found["plain"])
    expected = DisplacementField.from_linear(translation(np.array([1.0, 2.0, 3.0])), GRID)
    np.testing.assert_array_equal(plain.field.vectors, expected.vectors)
    np.testing.assert_array_equal(plain.field.linear, expected.linear)
    assert plain.field.geometry.same_grid(GRID)
    assert set(plain.steps) == {"prepare", "start", "register"}
    assert 0 < plain.seconds < 60
    assert plain.backward is None


def test_both_ways_gives_both_fields_and_survives_a_failing_way_back(found: dict[str, Registered | str]) -> None:
    both = done(found["both"])
    assert both.backward is not None
    # N4 and the window weigh the noise differently, and so does the start by a little
    np.testing.assert_allclose(both.backward.vectors, both.field.vectors, atol=0.1)
    assert done(found["one way"]).backward is None


def test_every_library_sees_the_pinned_threads(found: dict[str, Registered | str]) -> None:
    done(found["one thread"])


def test_complaint_and_crash_are_lines_and_the_others_still_run(found: dict[str, Registered | str]) -> None:
    assert found["complaint"] == "ValueError: no overlap at all"
    assert found["crash"] == "its process was ended by signal 11"
    done(found["after the crash"])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks by task need Linux's /proc")
def test_memory_is_the_tasks_own(found: dict[str, Registered | str]) -> None:
    before, hoard, after = (done(found[name]).peak_memory_mb for name in ("one way", "hoard", "after the hoard"))
    assert hoard - before > 250
    assert after - before < 150


def test_hanging_peer_is_ended_at_its_limit(players: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(players))
    (hung,) = isolated.run_apart([task("hang")], time_limit_s=0.5)
    assert hung == "not done after 0.5 s"
