"""The run's configuration: composed, overridden, refused with the setting's path."""

from __future__ import annotations

from pathlib import Path

import pytest

from hepalign.config import load_config, located, with_settings
from hepalign.errors import BadInputError, HepalignError, UsageError


def test_defaults_then_yaml_then_overrides(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("losses: {style: 60}\ntraining: {epochs: 3}\n", encoding="utf-8")
    config = load_config("inpainting", path, ["training.epochs=4", "data.cohorts=[a,b]"])
    flat = config.flat()
    assert config.name == "mine"
    assert (flat["losses"]["style"], flat["losses"]["hole"], flat["training"]["epochs"]) == (60, 6, 4)
    assert flat["data"]["cohorts"] == ["a", "b"]


def test_what_is_dumped_loads_again(tmp_path: Path) -> None:
    config = load_config("registration", {"losses": {"diffusion": 0.2}, "workers": {"count": 2}})
    config.dump(tmp_path / "config.yaml")
    assert load_config("registration", tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("override", "code", "named"),
    [
        ("losses.stlye=60", "config_unknown_key", r"losses\.stlye.*losses\.style"),
        ("trainign.epochs=3", "config_unknown_key", "trainign"),
        ("training.epoch=3", "config_unknown_key", r"training\.epoch.*training\.epochs"),
        ("training.epochs=0", "config_value", r"training\.epochs"),
        ("training.epochs=many", "config_value", r"training\.epochs.*'many'"),
        ("training.accumulate=2 training.checkpoint_every_steps=3", "config_value", "multiple of accumulate"),
        ("workers.min_count=3", "config_value", "min_count"),
        ("name=../elsewhere", "config_value", "name"),
        ("losses.style", "config_override", "losses.style"),
        ("stage=synthesis", "unknown_stage", "synthesis"),
    ],
)
def test_what_is_refused_is_named(override: str, code: str, named: str) -> None:
    with pytest.raises(UsageError, match=named) as caught:
        load_config("inpainting", {}, override.split())
    assert caught.value.code == code


def test_a_file_that_is_no_mapping_is_bad_input(tmp_path: Path) -> None:
    for content in ("- a\n- b\n", "a: [\n", "a: ${missing}\n"):
        path = tmp_path / "broken.yaml"
        path.write_text(content, encoding="utf-8")
        with pytest.raises(BadInputError) as caught:
            load_config("inpainting", path)
        assert caught.value.code == "config_unreadable"
        assert str(tmp_path) not in caught.value.message
    with pytest.raises(HepalignError):
        load_config("inpainting", tmp_path / "absent.yaml")


def test_settings_of_a_search_are_the_same_keys() -> None:
    config = load_config("inpainting", {})
    assert with_settings(config, {"losses.style": 12.5}).flat()["losses"]["style"] == 12.5
    with pytest.raises(UsageError):
        with_settings(config, {"losses.stile": 12.5})


@pytest.mark.parametrize("space", [{"losses.style": {}}, {"losses.style": {"uniform": [2, 1]}}, {}])
def test_a_search_space_must_say_something(space: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="search"):
        load_config("inpainting", {"search": {"space": space}})


def test_workers_get_absolute_places_and_urls_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = located(load_config("synthesis", {"data": {"cohorts": ["mine", "s3://bucket/theirs"]}}))
    assert config.flat()["data"]["cohorts"] == [str(tmp_path / "mine"), "s3://bucket/theirs"]
    assert config.out == tmp_path / "runs"


def test_where_and_how_long_may_change_on_resume_and_nothing_else() -> None:
    first = load_config("inpainting", {"name": "a"})
    moved = ["name=b", "workers.count=2", "tracking.enabled=false", "training.epochs=99"]
    assert load_config("inpainting", {}, moved).decisive() == first.decisive()
    for other in ("training.seed=1", "losses.style=60", "data.patch=[32,32,32]"):
        assert load_config("inpainting", {"name": "a"}, [other]).decisive() != first.decisive()
