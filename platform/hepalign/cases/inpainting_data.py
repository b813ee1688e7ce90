"""Images with simulated probe holes and the prior scan that may help to fill them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from hepalign.cases.augment import (
    affine_about,
    blurred,
    contrast,
    index_grid,
    mapped,
    noisy,
    random_turn,
    sampled,
    smooth_warp,
)
from hepalign.cases.case import Split
from hepalign.cases.cohort import Cohort
from hepalign.cases.holes import random_hole
from hepalign.cases.loading import Sample
from hepalign.cases.placing import covering_grid
from hepalign.cases.prepared import Arrays
from hepalign.cases.samples import Source, StageData, loader_of
from hepalign.image.intensity import body_mask, ct_to_unit
from hepalign.image.resample import resample
from hepalign.image.resample_labels import resample_labels
from hepalign.image.volume import Volume
from hepalign.transform.warp import warp

Target = Literal["pct", "ict_clean"]
TRUTH = "truth_field_ict_from_pct"
PROBE = "ict_probe_mask"
# Voxels kept of a mask from which tips and patch centres are drawn: enough places, little memory.
PLACES = 4096


class InpaintingData(StageData):
    """What the inpainting stage reads.

    Attributes:
        patch: voxels of a patch.
        window_hu: CT window that becomes [-1, 1].
        targets: images that are to be restored: the pCT (the paper's choice) and the probe-free iCT where known.
        samples_per_case: patches of each target image an epoch.
        radius_mm: half the width of a hole.
        length_mm: length of a hole.
        holes_max: at most so many holes (probes) in one patch.
        case_mask: share of the iCT samples whose hole is the case's own probe mask.
        prior_warp_mm: peak of the smooth warp that parts the prior from the target.
        prior_contrast: strength of the prior's random contrast phase.
        prior_dropout: share of training samples without a prior (a constant -1).
        rotation_deg: random rotation about each axis, ±.
        scale: random zoom, ±.
        noise: standard deviation of additional noise, unit scale, at most.
    """

    patch: tuple[int, int, int] = (64, 64, 64)
    window_hu: tuple[float, float] = (-200.0, 400.0)
    targets: tuple[Target, ...] = ("pct", "ict_clean")
    samples_per_case: int = Field(default=4, ge=1)
    radius_mm: tuple[float, float] = (4.0, 12.0)
    length_mm: tuple[float, float] = (40.0, 140.0)
    holes_max: int = Field(default=3, ge=1)
    case_mask: float = Field(default=0.5, ge=0, le=1)
    prior_warp_mm: float = Field(default=4.0, ge=0)
    prior_contrast: float = Field(default=0.3, ge=0)
    prior_dropout: float = Field(default=0.1, ge=0, le=1)
    rotation_deg: float = Field(default=10.0, ge=0)
    scale: float = Field(default=0.1, ge=0, lt=1)
    noise: float = Field(default=0.03, ge=0)


@dataclass(frozen=True)
class _Source(Source):
    target: Target

    @property
    def names(self) -> list[str]:
        """The files that the prepared arrays are made of."""
        extra = [PROBE, "ict", TRUTH, "pct", "ict_liver"] if self.target == "ict_clean" else ["pct_liver"]
        if not self.case.has(TRUTH, "pct"):
            extra = [name for name in extra if name not in (TRUTH, "pct")]
        return [self.target, *(name for name in extra if self.case.has(name))]


class _InpaintingSamples:
    def __init__(self, cohorts: Sequence[Cohort], config: InpaintingData, split: Split) -> None:
        self._config = config
        self._train = split == "train"
        self._sources = [
            _Source(cohort, case, target)
            for cohort in cohorts
            for case in cohort.cases(split)
            for target in config.targets
            if case.has(target)
        ]

    def __len__(self) -> int:
        return len(self._sources) * self._config.samples_per_case

    def make(self, index: int, rng: np.random.Generator) -> Sample:
        config = self._config
        source = self._sources[index % len(self._sources)]
        arrays = self._prepared(source)
        own_mask = "probe_places" in arrays and rng.random() < config.case_mask
        tip = _place(rng, arrays["probe_places" if own_mask else "tip_places"])
        shift = tip + rng.uniform(-0.25, 0.25, 3) * config.patch - (np.asarray(config.patch) - 1) / 2
        turn = random_turn(rng, config.rotation_deg, config.scale) if self._train else np.eye(3)
        indices = mapped(affine_about(config.patch, turn, shift), index_grid(config.patch))
        hole = sampled(arrays["probe"], indices)[0] > 0.5 if own_mask else self._holes(rng, arrays, tip, indices)
        image = sampled(arrays["image"], indices, outside=-1.0)
        seen = noisy(rng, image, rng.uniform(0, config.noise if self._train else 0.0))
        if own_mask and "ict" in arrays:
            # what its hole leaves over of the artefact is seen in use, so it is seen here
            seen = sampled(arrays["ict"], indices, outside=-1.0)
        return {
            "image": torch.where(hole, image, seen),
            "mask": (~hole)[None].float(),
            "prior": self._prior(rng, arrays, indices),
            "body": (sampled(arrays["body"], indices) > 0.5).float(),
            "case_id": source.case.id,
        }

    def _holes(self, rng: np.random.Generator, arrays: Arrays, tip: NDArray[np.float64], indices: Tensor) -> Tensor:
        config = self._config
        hole = torch.zeros(config.patch, dtype=torch.bool)
        for _ in range(int(rng.integers(1, config.holes_max + 1))):
            hole |= random_hole(rng, tip, config.spacing_mm, config.radius_mm, config.length_mm).inside(indices)
            # further probes end near the first, as they do in one tumour
            tip = tip + rng.uniform(-15, 15, 3) / config.spacing_mm
        return hole

    def _prior(self, rng: np.random.Generator, arrays: Arrays, indices: Tensor) -> Tensor:
        config = self._config
        if self._train and rng.random() < config.prior_dropout:
            return torch.full((1, *config.patch), -1.0)
        paired = "prior" in arrays
        peak = config.prior_warp_mm / config.spacing_mm * rng.uniform(0.2, 1.0)
        moved = indices + smooth_warp(rng, config.patch, peak, 32.0 / config.spacing_mm)
        prior = sampled(arrays["prior" if paired else "image"], moved, outside=-1.0)
        if not paired:
            # the same scan: its noise must not be there to be copied, so it is blurred and given noise of its own
            prior = noisy(rng, contrast(rng, blurred(prior, 0.7), config.prior_contrast), config.noise)
        return prior

    def _prepared(self, source: _Source) -> Arrays:
        recipe = {
            "stage": "inpainting",
            "target": source.target,
            "spacing_mm": self._config.spacing_mm,
            "window_hu": self._config.window_hu,
            "arrays": ("image", "ict", "prior"),
        }
        return source.prepared(source.names, recipe, lambda: self._make(source))

    def _make(self, source: _Source) -> Arrays:
        names = source.names
        target = source.volume(source.target)
        grid = covering_grid(target.geometry, self._config.spacing_mm)
        air = self._config.window_hu[0]
        body = resample(body_mask(target), grid, mode="nearest").as_mask()
        arrays: Arrays = {"image": self._unit(resample(target, grid, fill=air)), "body": body.astype(np.uint8)}
        liver_name = f"{source.target[:3]}_liver"
        tips = resample_labels(source.volume(liver_name), grid).as_mask() if liver_name in names else body
        arrays["tip_places"] = _places(tips if tips.any() else body)
        if TRUTH in names:
            field = source.cohort.field(source.case, TRUTH)
            arrays["prior"] = self._unit(resample(warp(source.volume("pct"), field, fill=air), grid, fill=air))
        if PROBE in names:
            probe = resample(source.volume(PROBE), grid, mode="nearest", fill=0).as_mask()
            if probe.any():
                arrays |= {"probe": probe.astype(np.uint8), "probe_places": _places(probe)}
                if "ict" in names:
                    arrays["ict"] = self._unit(resample(source.volume("ict"), grid, fill=air))
        return arrays

    def _unit(self, ct: Volume) -> NDArray[np.float16]:
        return ct_to_unit(ct.as_float(), self._config.window_hu).astype(np.float16)


def _places(mask: NDArray[np.bool_]) -> NDArray[np.int16]:
    """Up to `PLACES` indices of a mask's voxels, (N, 3), evenly spread in array order."""
    found = np.flatnonzero(mask) if mask.any() else np.array([mask.size // 2])
    chosen = found[np.linspace(0, len(found) - 1, min(PLACES, len(found))).astype(int)]
    return np.stack(np.unravel_index(chosen, mask.shape), axis=-1).astype(np.int16)


def _place(rng: np.random.Generator, places: NDArray[np.generic]) -> NDArray[np.float64]:
    return np.asarray(places[int(rng.integers(len(places)))], dtype=np.float64)


inpainting_loader = loader_of(_InpaintingSamples)
"""Batches of `image`, `mask`, `prior`, `body`, each [B, 1, D, H, W] float32, and `case_id`.

`image` is the target in unit scale: free of the probe and of added noise in the hole, as the scanner shows it (noise,
leftover streaks) outside. `mask` is 1 where it may be seen and 0 in the hole, `body` 1 in the patient. `prior`
is the patient's pCT warped by the truth and a residual smooth warp where the target is an iCT, else the target itself
under a larger warp, with noise and contrast of its own; -1 everywhere where it is dropped.
"""
