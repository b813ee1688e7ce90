"""Pairs with their true displacement on one network grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.ndimage import gaussian_filter
from torch import Tensor

from hepalign.cases.augment import affine_about, contrast, index_grid, mapped, noisy, random_turn, sampled, smooth_warp
from hepalign.cases.case import Case, Split
from hepalign.cases.cohort import Cohort
from hepalign.cases.loading import Sample
from hepalign.cases.placing import mask_centre_mm, placed_grid
from hepalign.cases.prepared import Arrays
from hepalign.cases.samples import Source, StageData, loader_of
from hepalign.image.geometry import Geometry
from hepalign.image.intensity import MR_BODY_UNIT, SOFT_TISSUE_WINDOW_HU, body_mask, ct_to_unit, normalise_mr
from hepalign.image.resample import resample
from hepalign.image.resample_labels import resample_labels
from hepalign.image.volume import Volume
from hepalign.transform import linear
from hepalign.transform.displacement import DisplacementField, invert, resample_field

Pair = Literal["ict_from_pct", "pct_from_ict", "pct_from_pmr", "single"]
Judge = Literal["truth", "livers", "images"]
PROBE = "ict_probe_mask"
SINGLES = ("pct", "ict_clean", "pmr_true_ct")
SINGLE_BLUR_VOXELS = 0.6


class RegistrationData(StageData):
    """What the registration stage reads.

    Attributes:
        shape: voxels of the network's grid.
        spacing_mm: its isotropic spacing.
        window_hu: CT window that becomes [-1, 1].
        pairs: `a_from_b` is fixed a, moving b; `single` is one image and itself under a random smooth warp.
        pmr_image: what stands for the pMR: its true CT (an ideal synthesis) where there is one, or the MR itself.
        prealign: take out the truth's best affine map, as the affine stage before the network does.
        affine_jitter_mm: the affine stage's error in translation, ±.
        affine_jitter_deg: its error in rotation, ±.
        warp_mm: peak of the warp of `single`.
        warp_period_mm: its coarseness.
        samples_per_pair: samples of each pair an epoch.
        rotation_deg: common random rotation about each axis, ±.
        scale: common random zoom, ±.
        shift_mm: common random shift along each axis, ±.
        contrast: strength of the random contrast phase of either image.
        noise: standard deviation of additional noise, unit scale, at most.
    """

    shape: tuple[int, int, int] = (96, 96, 80)
    spacing_mm: float = Field(default=3.0, gt=0)
    window_hu: tuple[float, float] = SOFT_TISSUE_WINDOW_HU
    pairs: tuple[Pair, ...] = ("ict_from_pct", "pct_from_ict", "pct_from_pmr", "single")
    pmr_image: Literal["pmr_true_ct", "pmr"] = "pmr_true_ct"
    prealign: bool = True
    affine_jitter_mm: float = Field(default=4.0, ge=0)
    affine_jitter_deg: float = Field(default=2.0, ge=0)
    warp_mm: float = Field(default=15.0, ge=0)
    warp_period_mm: float = Field(default=72.0, gt=0)
    samples_per_pair: int = Field(default=1, ge=1)
    rotation_deg: float = Field(default=8.0, ge=0)
    scale: float = Field(default=0.08, ge=0, lt=1)
    shift_mm: float = Field(default=15.0, ge=0)
    contrast: float = Field(default=0.3, ge=0)
    noise: float = Field(default=0.04, ge=0)


@dataclass(frozen=True)
class _Source(Source):
    pair: Pair
    fixed: str
    moving: str
    truth: str | None

    @property
    def livers(self) -> list[str]:
        return [f"{self.fixed[:3]}_liver", f"{self.moving[:3]}_liver"]

    @property
    def names(self) -> list[str]:
        probe = [PROBE, "ict_clean"] if "ict" in (self.fixed, self.moving) else []
        wanted = [self.fixed, self.moving, *self.livers, *probe, *([self.truth] if self.truth else [])]
        return [name for name in dict.fromkeys(wanted) if self.case.has(name)]


def _sources(cohort: Cohort, case: Case, config: RegistrationData) -> list[_Source]:
    """Every pair that this case can give."""
    pmr = config.pmr_image if case.has(config.pmr_image) else "pmr"
    truth_ict, truth_pct = "truth_field_ict_from_pct", "truth_field_pct_from_pmr"
    wanted: list[tuple[Pair, str, str, str]] = [
        ("ict_from_pct", "ict", "pct", truth_ict),
        ("pct_from_ict", "pct", "ict", truth_ict),
        ("pct_from_pmr", "pct", pmr, truth_pct),
    ]
    found = [
        _Source(cohort, case, pair, fixed, moving, truth if case.has(truth) else None)
        for pair, fixed, moving, truth in wanted
        if pair in config.pairs and case.has(fixed, moving)
    ]
    if "single" in config.pairs:
        found += [_Source(cohort, case, "single", name, name, None) for name in SINGLES if case.has(name)]
    return found


def _split_sources(cohorts: Sequence[Cohort], config: RegistrationData, split: Split) -> list[_Source]:
    return [s for cohort in cohorts for case in cohort.cases(split) for s in _sources(cohort, case, config)]


def _judged(sources: Sequence[_Source]) -> tuple[Judge, list[_Source]]:
    """What validation can judge by, and the pairs that it can: with a true field, else with both livers, else all.

    A mean over pairs that know their error and others that do not would be too small. Single images are validated on
    only where there is nothing else; their warp is known.
    """
    pairs = [source for source in sources if source.pair != "single"]
    if known := [source for source in pairs if source.truth]:
        return "truth", known
    if labelled := [source for source in pairs if source.case.has(*source.livers)]:
        return "livers", labelled
    return ("images", pairs) if pairs else ("truth", list(sources))


def validated_by(cohorts: Sequence[Cohort], config: RegistrationData) -> Judge:
    """What the validation split's pairs can be judged by; all of them can."""
    return _judged(_split_sources(cohorts, config, "val"))[0]


class _RegistrationSamples:
    def __init__(self, cohorts: Sequence[Cohort], config: RegistrationData, split: Split) -> None:
        self._config = config
        self._train = split == "train"
        sources = _split_sources(cohorts, config, split)
        self._sources = sources if self._train else _judged(sources)[1]

    def __len__(self) -> int:
        return len(self._sources) * self._config.samples_per_pair

    def make(self, index: int, rng: np.random.Generator) -> Sample:
        source = self._sources[index % len(self._sources)]
        arrays = self._prepared(source)
        synthetic = source.pair == "single"
        common, jitter = self._maps(rng)
        at = mapped(common, index_grid(self._config.shape))
        sample = self._warped(rng, arrays, at, common) if synthetic else self._paired(arrays, at, common, jitter)
        if self._train:
            for name in ("moving", "fixed"):
                sample[name] = contrast(rng, sample[name], self._config.contrast)
        if self._train or synthetic:
            for name in ("moving", "fixed"):
                sample[name] = noisy(rng, sample[name], rng.uniform(0.25, 1.0) * self._config.noise)
        return {**sample, "case_id": source.case.id}

    def _maps(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Index maps: common to both images (training only), and the affine stage's error in the moving one."""
        config = self._config
        common = np.eye(4)
        if self._train:
            shift = rng.uniform(-config.shift_mm, config.shift_mm, 3) / config.spacing_mm
            common = affine_about(config.shape, random_turn(rng, config.rotation_deg, config.scale), shift)
        slip = rng.uniform(-config.affine_jitter_mm, config.affine_jitter_mm, 3) / config.spacing_mm
        return common, affine_about(config.shape, random_turn(rng, config.affine_jitter_deg, 0.0), slip)

    def _paired(
        self, arrays: Arrays, at: Tensor, common: NDArray[np.float64], jitter: NDArray[np.float64]
    ) -> dict[str, Tensor]:
        """fixed'(i) = fixed(C i), moving'(i) = moving(C J i), so the truth is J⁻¹ C⁻¹ (C i + v(C i)) − i."""
        moving_at = mapped(common @ jitter, index_grid(self._config.shape))
        known = "field" in arrays
        field = torch.zeros(3, *self._config.shape)
        if known:
            target = at + sampled(arrays["field"], _held(at, arrays["field"].shape[1:])).permute(1, 2, 3, 0)
            back = mapped(_inverse(common @ jitter), target)
            field = (back - index_grid(self._config.shape)).permute(3, 0, 1, 2).contiguous()
        return {
            **_images(arrays, "fixed", at),
            **_images(arrays, "moving", moving_at),
            "has_liver": torch.tensor(bool(arrays["has_liver"][0])),
            "field": field,
            "has_field": torch.tensor(known),
        }

    def _warped(
        self, rng: np.random.Generator, arrays: Arrays, at: Tensor, common: NDArray[np.float64]
    ) -> dict[str, Tensor]:
        """One image and itself: moving'(i) = image(C i), fixed'(i) = moving'(i + s(i)); the truth is s."""
        config = self._config
        peak = config.warp_mm / config.spacing_mm * rng.uniform(0.2, 1.0)
        field = smooth_warp(rng, config.shape, peak, config.warp_period_mm / config.spacing_mm)
        warped_at = mapped(common, index_grid(config.shape) + field)
        moving = _images(arrays, "fixed", at)
        return {
            **_images(arrays, "fixed", warped_at),
            "moving": moving["fixed"],
            "moving_liver": moving["fixed_liver"],
            "has_liver": torch.tensor(bool(arrays["has_liver"][0])),
            "field": field.permute(3, 0, 1, 2).contiguous(),
            "has_field": torch.tensor(True),
        }

    def _prepared(self, source: _Source) -> Arrays:
        fields = ("shape", "spacing_mm", "window_hu", "pmr_image", "prealign")
        recipe = self._config.model_dump(include=set(fields), mode="json") | {
            "stage": "registration",
            "pair": source.pair,
            "names": [source.fixed, source.moving, *source.names],
            "scanned_mm": source.case.attributes.get("scanned_mm"),
        }
        return source.prepared(source.names, recipe, lambda: _PairMaker(source, self._config).arrays())


def _images(arrays: Arrays, side: str, at: Tensor) -> dict[str, Tensor]:
    """Image, liver and (of the fixed image) valid mask at indices, each [1, D, H, W]."""
    found = sampled(arrays[side], at, outside=(-1.0, 0.0, 0.0)[: len(arrays[side])])
    names = (side, f"{side}_liver", f"{side}_mask")[: len(found)]
    masks = (found[1:] > 0.5).float()
    return dict(zip(names, (found[:1], *masks[:, None]), strict=True))


def _held(indices: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Indices held inside the grid: a field continues by its border value."""
    return torch.minimum(indices.clamp_min(0), torch.tensor([n - 1.0 for n in shape]))


class _PairMaker:
    """Brings one pair onto its grid."""

    def __init__(self, source: _Source, config: RegistrationData) -> None:
        self._source, self._config = source, config

    def arrays(self) -> Arrays:
        source, config = self._source, self._config
        fixed, moving = self._image(source.fixed), self._image(source.moving)
        livers = [self._liver(name) for name in (source.fixed, source.moving)]
        bodies = [_body(fixed, source.fixed), _body(moving, source.moving)]
        grid = placed_grid(fixed.geometry, config.shape, config.spacing_mm, body=bodies[0], liver=livers[0])
        truth = self._truth(grid)
        affine = np.eye(4)
        if config.prealign and source.pair != "single":
            inside = resample(bodies[0], grid, mode="nearest").as_mask()
            affine = _best_affine(truth, inside) if truth is not None else _centring(livers, bodies)
        fixed_channels = [
            self._unit(source.fixed, fixed, grid),
            _on_grid(livers[0], np.eye(4), grid),
            self._valid(fixed, grid),
        ]
        moving_channels = [self._unit(source.moving, _moved(moving, affine), grid), _on_grid(livers[1], affine, grid)]
        arrays: Arrays = {
            "fixed": np.stack(fixed_channels).astype(np.float16),
            "moving": np.stack(moving_channels).astype(np.float16),
            "has_liver": np.array([all(liver is not None for liver in livers)]),
        }
        if truth is not None:
            points = grid.grid_mm()
            back = linear.apply(_inverse(affine), points + truth.vectors)
            arrays["field"] = np.moveaxis((back - points) / config.spacing_mm, -1, 0).astype(np.float16)
        return arrays

    def _image(self, name: str) -> Volume:
        """An image in its own units; the iCT's hole is filled by the probe-free scan where that is known."""
        source = self._source
        volume = source.volume(name)
        if name == "ict" and source.case.has(PROBE, "ict_clean"):
            hole = self._hole()
            clean = source.volume("ict_clean").as_float()
            return volume.with_data(np.where(hole.as_mask(), clean, volume.as_float()))
        return volume

    def _hole(self) -> Volume:
        return self._source.volume(PROBE)

    def _liver(self, name: str) -> Volume | None:
        liver = f"{name[:3]}_liver"
        return self._source.volume(liver) if self._source.case.has(liver) else None

    def _truth(self, grid: Geometry) -> DisplacementField | None:
        source = self._source
        if source.truth is None:
            return None
        field = source.cohort.field(source.case, source.truth)
        return invert(field, grid) if source.pair == "pct_from_ict" else resample_field(field, grid)

    def _unit(self, name: str, volume: Volume, grid: Geometry) -> NDArray[np.float32]:
        if name == "pmr":
            scaled, _ = normalise_mr(volume)
            unit = resample(volume.with_data(scaled), grid, fill=-1.0).as_float()
        else:
            unit = ct_to_unit(resample(volume, grid, fill=-1024.0).as_float(), self._config.window_hu)
        if self._source.pair == "single":
            # both images of a synthetic pair come from this one: its voxel noise must not be there to lock on to
            unit = gaussian_filter(unit, SINGLE_BLUR_VOXELS)
        return unit

    def _valid(self, fixed: Volume, grid: Geometry) -> NDArray[np.bool_]:
        """Where the fixed image was scanned and no probe hides it."""
        name, case = self._source.fixed, self._source.case
        seen = fixed.with_data(_scanned(fixed.geometry, name, case).astype(np.uint8))
        valid = resample(seen, grid, mode="nearest", fill=0).as_mask()
        if name == "ict" and case.has(PROBE):
            valid &= ~resample(self._hole(), grid, mode="nearest", fill=0).as_mask()
        return valid


def _on_grid(mask: Volume | None, affine: NDArray[np.float64], grid: Geometry) -> NDArray[np.bool_]:
    """A mask, seen through a fixed-to-moving world map, on a grid; nothing where there is none."""
    if mask is None:
        return np.zeros(grid.shape, bool)
    return resample_labels(_moved(mask, affine), grid).as_mask()


def _scanned(geometry: Geometry, name: str, case: Case) -> NDArray[np.bool_]:
    """Which voxels were scanned: import fills a cohort's grid with air beyond the scan and notes the scan's box."""
    boxes = case.attributes.get("scanned_mm")
    if not isinstance(boxes, dict) or name[:3] not in boxes:
        return np.ones(geometry.shape, bool)
    low, high = np.asarray(boxes[name[:3]], dtype=np.float64)
    points = geometry.grid_mm()
    inside: NDArray[np.bool_] = ((points >= low) & (points <= high)).all(axis=-1)
    return inside


def _body(volume: Volume, name: str) -> Volume:
    if name != "pmr":
        return body_mask(volume)
    scaled, _ = normalise_mr(volume)
    return volume.with_data(scaled > MR_BODY_UNIT)


def _inverse(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.inv(matrix), dtype=np.float64)


def _moved(volume: Volume, affine: NDArray[np.float64]) -> Volume:
    """The volume as seen through a fixed-to-moving world map: `moved(x) = volume(affine x)`."""
    return Volume(volume.data, Geometry(volume.geometry.shape, _inverse(affine) @ volume.geometry.affine))


def _best_affine(truth: DisplacementField, inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The affine map nearest to the truth over a mask, least squares, 4 x 4 fixed to moving."""
    step = max(int(inside.sum()) // 20000, 1)
    points = truth.geometry.grid_mm()[inside][::step]
    return linear.fit_affine(points, points + truth.vectors[inside][::step]) if len(points) > 99 else np.eye(4)


def _centring(livers: list[Volume | None], bodies: list[Volume]) -> NDArray[np.float64]:
    """The shift that lays the livers' middles (the bodies' where a liver is missing) on each other."""
    masks = [liver for liver in livers if liver is not None]
    middles = [mask_centre_mm(mask) for mask in (masks if len(masks) == 2 else bodies)]
    affine = np.eye(4)
    if middles[0] is not None and middles[1] is not None:
        affine[:3, 3] = middles[1] - middles[0]
    return affine


registration_loader = loader_of(_RegistrationSamples)
"""Batches of pairs on a grid of `shape` and `spacing_mm`, axis-aligned RAS, placed on the fixed image's anatomy.

`moving`, `fixed` [B, 1, D, H, W] in unit scale; `fixed_mask` 1 where the fixed image shows anatomy (not in the probe's
hole, not outside its field of view); `moving_liver`, `fixed_liver` 0 or 1, and `has_liver` [B] whether both are known;
`field` [B, 3, D, H, W] the true displacement in voxels, `fixed(p) ≈ moving(p + field(p))`, and `has_field` [B] whether
it is known; `case_id`.
"""
