"""One typed configuration per run: the stage's own parts and the platform's, from YAML and `a.b=c` overrides.

The YAML is flat: `losses.style`, `data.cohorts` and `net.…` belong to the stage and are declared beside what they
configure; `training`, `workers`, `tracking` and `search` belong to the platform. An unknown key or a bad value is
refused with its path.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    ValidationError,
    model_validator,
)
from yaml import YAMLError

from hepalign.errors import BadInputError, UsageError
from hepalign.training.schedule import TrainingConfig

ModelT = TypeVar("ModelT", bound=BaseModel)
StageName = Literal["synthesis", "inpainting", "registration"]
# The stage's component configs; imported by name so that one stage's libraries are not needed for another's.
COMPONENTS: dict[str, tuple[str, str]] = {
    "synthesis": ("hepalign.stages.synthesis", "SynthesisConfig"),
    "inpainting": ("hepalign.stages.inpainting", "InpaintingConfig"),
    "registration": ("hepalign.stages.registration", "RegistrationConfig"),
}


_ELSEWHERE = {"out", "name", "workers", "tracking", "search"}
_FREE_ON_RESUME = {
    "epochs",
    "budget_s",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "progress_every_s",
    "recompute_activations",
}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WorkersConfig(_Part):
    """Who trains: 0 workers is this process, N are Ray Train's."""

    count: NonNegativeInt = 0
    min_count: PositiveInt | None = Field(None, description="elastic: go on with as few as these when nodes vanish")
    cpus: PositiveFloat = Field(1.0, description="CPUs that each worker reserves; its torch threads follow")
    gpu: bool = False
    max_failures: NonNegativeInt = Field(3, description="worker losses that a run survives")
    max_preemptions: NonNegativeInt = 20
    storage: str | None = Field(None, description="checkpoints: a folder that every node sees, or s3://; None: in out")
    upload: Literal["sync", "async"] = "sync"
    autoscaling: bool = Field(False, description="the cluster grows on demand: do not check its size beforehand")
    resize_every_s: PositiveFloat = Field(60.0, description="elastic: how often to look for new nodes")

    @model_validator(mode="after")
    def _elastic_range(self) -> WorkersConfig:
        if self.min_count is not None and self.min_count > self.count:
            raise ValueError("min_count must not exceed count")
        return self


class TrackingConfig(_Part):
    """Where MLflow is and what the run is filed under."""

    uri: str | None = Field(None, description="MLflow's address; None: MLFLOW_TRACKING_URI, else SQLite in the output")
    experiment: str = "hepalign"
    enabled: bool = True
    system_metrics: bool = Field(True, description="processor, memory, disk, network and GPU beside every epoch")
    pictures_every_epochs: PositiveInt = Field(1, description="of the epochs that validate, send pictures of these")


class Distribution(_Part):
    """The values that a search may take for one setting: exactly one of these."""

    log_uniform: tuple[PositiveFloat, PositiveFloat] | None = None
    uniform: tuple[float, float] | None = None
    integers: tuple[int, int] | None = Field(None, description="both ends included")
    choice: list[str | float | bool] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Distribution:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(type(self).model_fields)}")
        for pair in (self.log_uniform, self.uniform, self.integers):
            if pair is not None and not pair[0] < pair[1]:
                raise ValueError("the lower end must be below the upper end")
        return self


class SearchConfig(_Part):
    """A search over the same configuration; it selects on the stage's validation metric, never on a loss."""

    space: dict[str, Distribution] = Field(min_length=1, description="dotted keys, such as losses.style")
    start: list[dict[str, str | float | bool]] = Field(default=[], description="points to try first")
    trials: PositiveInt = 8
    budget_s: PositiveFloat | None = None
    concurrent: PositiveInt | None = Field(None, description="trials at once; None: as many as the cluster holds")
    grace_epochs: PositiveInt = Field(1, description="ASHA stops no trial before")
    reduction: PositiveInt = Field(2, ge=2, description="ASHA keeps one in this many")
    seed: int = 0

    @model_validator(mode="after")
    def _start_in_the_space(self) -> SearchConfig:
        for point in self.start:
            if not point.keys() <= self.space.keys():
                raise ValueError("a point of start names keys that space does not have")
        return self


class RunConfig(_Part):
    """Everything that decides a training. `component` is the stage's own config."""

    stage: str
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    out: Path = Field(Path("runs"), description="the run's files go to out/name")
    training: TrainingConfig = TrainingConfig()
    workers: WorkersConfig = WorkersConfig()
    tracking: TrackingConfig = TrackingConfig()
    search: SearchConfig | None = None
    component: SerializeAsAny[BaseModel]

    def flat(self) -> dict[str, Any]:
        """The merged configuration as the YAML has it, plain values only."""
        mine = self.model_dump(mode="json", exclude={"component"}, exclude_none=True)
        return mine | self.component.model_dump(mode="json")

    def dump(self, path: Path) -> None:
        """Write the merged configuration as YAML; `load_config` reads it back."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(OmegaConf.to_yaml(OmegaConf.create(self.flat())), encoding="utf-8")

    @property
    def folder(self) -> Path:
        """Where the run's files go."""
        return self.out / self.name

    def decisive(self) -> dict[str, Any]:
        """What a resumed run may not change: all but where it runs, for how long and where it reports."""
        flat = self.flat()
        training = {key: value for key, value in flat["training"].items() if key not in _FREE_ON_RESUME}
        return {key: value for key, value in flat.items() if key not in _ELSEWHERE} | {"training": training}


def load_config(stage: str, source: Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of one run: defaults, then `source` (YAML or a mapping), then `a.b=c` overrides.

    Raises:
        UsageError: `unknown_stage`, `config_override` for a word that is not `a.b=c`, `config_unknown_key` or
            `config_value` with the setting's path.
        BadInputError: `config_unreadable` for a file that is no YAML mapping.
    """
    default_name = source.stem if isinstance(source, Path) else stage
    return _composed(stage, component_class(stage), _merge(source, overrides), default_name)


def _composed(stage: str, component_type: type[BaseModel], values: dict[str, Any], default_name: str) -> RunConfig:
    named = values.pop("stage", stage)
    if named != stage:
        raise UsageError(f"the config is for {named}, not for {stage}: give the matching file", code="unknown_stage")
    mine = {key: values.pop(key) for key in list(values) if key in RunConfig.model_fields and key != "component"}
    component = _validated(component_type, values)
    return _validated(RunConfig, {"name": default_name, **mine, "stage": stage, "component": component})


def component_class(stage: str) -> type[BaseModel]:
    """The stage's own config class."""
    if stage not in COMPONENTS:
        known = ", ".join(get_args(StageName))
        raise UsageError(f"there is no stage {stage!r}; the stages are {known}", code="unknown_stage")
    module, name = COMPONENTS[stage]
    return cast("type[BaseModel]", getattr(import_module(module), name))


def with_settings(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """The same run with other values under dotted keys."""
    flat = OmegaConf.create(config.flat())
    for key, value in settings.items():
        OmegaConf.update(flat, key, value)
    values = cast("dict[str, Any]", OmegaConf.to_container(flat))
    return _composed(config.stage, type(config.component), values, config.name)


def located(config: RunConfig) -> RunConfig:
    """The same run with absolute folders: Ray's workers have other working directories."""
    data = getattr(config.component, "data", None)
    places = [str(place) for place in getattr(data, "cohorts", [])]
    absolute = {"cohorts": [place if "://" in place else str(Path(place).resolve()) for place in places]}
    component = config.component
    if isinstance(data, BaseModel) and places:
        component = component.model_copy(update={"data": data.model_copy(update=absolute)})
    return config.model_copy(update={"out": config.out.resolve(), "component": component})


def _merge(source: Path | Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    name = source.name if isinstance(source, Path) else "the configuration"
    try:
        base: Any = OmegaConf.load(source) if isinstance(source, Path) else OmegaConf.create(dict(source))
        if not isinstance(base, DictConfig):
            raise BadInputError(f"{name}: a configuration is a YAML mapping of settings", code="config_unreadable")
        for word in overrides:
            base = OmegaConf.merge(base, _override(word))
        return cast("dict[str, Any]", OmegaConf.to_container(base, resolve=True))
    except (OSError, YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        what = "there is no such file" if isinstance(error, FileNotFoundError) else str(error).splitlines()[0]
        raise BadInputError(f"{name}: {what}", code="config_unreadable") from error


def _override(word: str) -> DictConfig:
    if "=" not in word or word.startswith("="):
        raise UsageError(f"an override reads a.b=c, not {word!r}", code="config_override")
    try:
        return OmegaConf.from_dotlist([word])
    except (YAMLError, OmegaConfBaseException) as error:
        raise UsageError(f"{word!r} cannot be read: {str(error).splitlines()[0]}", code="config_override") from error


def _validated(model: type[ModelT], values: Mapping[str, Any]) -> ModelT:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"]) or "the configuration"
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(path, _paths(model) + _paths(RunConfig), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"{path}: there is no such setting{hint}", code="config_unknown_key") from error
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{path}: {message}, not {first['input']!r:.80}", code="config_value") from error


def _paths(model: type[BaseModel]) -> list[str]:
    """Every dotted key of a model."""
    found = []
    for name, field in model.model_fields.items():
        found.append(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += [f"{name}.{inner}" for inner in _paths(field.annotation)]
    return found
