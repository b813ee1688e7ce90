from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from hepalign.cases.prepared import cache_folder, prepared, prepared_key
from hepalign.errors import WorkFailedError


def test_prepared_arrays_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEPALIGN_CACHE", str(tmp_path))
    made = []

    def make() -> dict[str, np.ndarray]:  # type: ignore[type-arg]
        made.append(1)
        return {"a": np.arange(5), "b": np.zeros((2, 2), np.float16)}

    key = prepared_key(["d" * 64], {"spacing_mm": 2.0})
    for _ in range(2):
        arrays = prepared(key, make)
        assert arrays["a"].tolist() == [0, 1, 2, 3, 4]
        assert not arrays["a"].flags.writeable
    assert made == [1]
    assert key != prepared_key(["d" * 64], {"spacing_mm": 3.0})
    assert key != prepared_key(["e" * 64], {"spacing_mm": 2.0})
    assert cache_folder() == tmp_path


def test_a_preparation_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEPALIGN_CACHE", str(tmp_path))
    with pytest.raises(ZeroDivisionError):
        prepared("ab" * 32, lambda: {"a": np.array(1 // 0)})
    assert not list(tmp_path.rglob("*.npy"))


def test_what_was_unused_for_longest_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEPALIGN_CACHE", str(tmp_path))
    monkeypatch.setenv("HEPALIGN_CACHE_GB", "0.0025")
    keys = [f"{n:064x}" for n in range(3)]
    first = prepared(keys[0], lambda: {"a": np.ones(125_000)})
    prepared(keys[1], lambda: {"a": np.zeros(125_000)})
    for n, key in enumerate(keys[:2]):
        os.utime(tmp_path / "prepared" / key[:2] / key, (n, n))
    prepared(keys[2], lambda: {"a": np.zeros(125_000)})
    left = {path.name for path in (tmp_path / "prepared").glob("*/*")}
    assert left == set(keys[1:])
    # whoever reads on is not disturbed
    assert first["a"].sum() == 125_000


def test_a_kill_while_arrays_are_forgotten_leaves_no_half_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEPALIGN_CACHE", str(tmp_path))
    monkeypatch.setenv("HEPALIGN_CACHE_GB", "0.0012")
    old, new = "a" * 64, "a" * 63 + "b"

    def make() -> dict[str, np.ndarray]:  # type: ignore[type-arg]
        return {"a": np.ones(62_500), "b": np.ones(62_500)}

    def killed(folder: Path, **_: object) -> None:
        # whoever removes a folder has come this far when it is killed
        (folder / "a.npy").unlink()
        raise KeyboardInterrupt

    prepared(old, make)
    os.utime(tmp_path / "prepared" / "aa" / old, (1, 1))
    with monkeypatch.context() as patch:
        patch.setattr("hepalign.cases.prepared._prepare", _made)
        patch.setattr("hepalign.cases.prepared.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            prepared(new, make)
    monkeypatch.setenv("HEPALIGN_CACHE_GB", "1")
    assert set(prepared(old, make)) == {"a", "b"}
    (left,) = (tmp_path / "prepared").glob("*/.*")
    os.utime(left, (1, 1))
    prepared("c" * 64, make)
    assert not left.exists()


def _made(folder: Path, arrays: dict[str, np.ndarray]) -> None:  # type: ignore[type-arg]
    folder.mkdir(parents=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


@pytest.mark.parametrize("content", [None, b"", b"\x93NUMPY", "cut"])
def test_a_folder_that_is_empty_or_damaged_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | str | None
) -> None:
    monkeypatch.setenv("HEPALIGN_CACHE", str(tmp_path))
    made = []

    def make() -> dict[str, np.ndarray]:  # type: ignore[type-arg]
        made.append(1)
        # a loop without an end would not say so
        assert len(made) < 3
        return {"a": np.arange(1000)}

    prepared("ab" * 32, make)
    path = tmp_path / "prepared" / "ab" / ("ab" * 32) / "a.npy"
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(whole[:-100] if isinstance(content, str) else content)
    assert prepared("ab" * 32, make)["a"].sum() == 499_500
    assert len(made) == 2


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("HEPALIGN_CACHE", str(tmp_path / "file"))
    with pytest.raises(WorkFailedError) as error:
        prepared("ab" * 32, lambda: {"a": np.zeros(1)})
    assert (error.value.code, error.value.status) == ("cache_unusable", 507)
    assert str(tmp_path) not in error.value.message
