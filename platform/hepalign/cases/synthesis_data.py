"""MR and CT patches for the CycleGAN: unpaired in training, paired with the true CT in validation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage
from torch import Tensor

from hepalign.cases.augment import affine_about, bias_field, contrast, index_grid, mapped, noisy, random_turn, sampled
from hepalign.cases.case import Split
from hepalign.cases.cohort import Cohort
from hepalign.cases.loading import Sample
from hepalign.cases.placing import covering_grid
from hepalign.cases.prepared import Arrays
from hepalign.cases.samples import Source, StageData, loader_of
from hepalign.image.intensity import CT_WINDOW_HU, MR_BODY_UNIT, body_mask, ct_to_unit, normalise_mr
from hepalign.image.resample import resample
from hepalign.image.volume import Volume

# A CT is air beyond this distance from the patient: no MR shows the couch.
COUCH_MARGIN_MM = 8.0


class SynthesisData(StageData):
    """What the synthesis stage reads.

    Attributes:
        patch: voxels of a patch.
        window_hu: CT window that becomes [-1, 1].
        samples_per_case: patches of each MR an epoch.
        rotation_deg: random rotation about each axis, ±.
        scale: random zoom, ±.
        bias: strength of an additional MR bias field.
        contrast: strength of a random gamma of the MR: no scanner's scale is another's.
        noise: standard deviation of additional MR noise, unit scale, at most.
    """

    patch: tuple[int, int, int] = (96, 96, 48)
    window_hu: tuple[float, float] = CT_WINDOW_HU
    samples_per_case: int = Field(default=4, ge=1)
    rotation_deg: float = Field(default=8.0, ge=0)
    scale: float = Field(default=0.1, ge=0, lt=1)
    bias: float = Field(default=0.1, ge=0)
    contrast: float = Field(default=0.2, ge=0)
    noise: float = Field(default=0.02, ge=0)


class _SynthesisSamples:
    def __init__(self, cohorts: Sequence[Cohort], config: SynthesisData, split: Split) -> None:
        self._config = config
        self._train = split == "train"
        sources = [Source(cohort, case) for cohort in cohorts for case in cohort.cases(split)]
        self._cts = [source for source in sources if source.case.has("pct")]
        self._mrs = [source for source in sources if source.case.has("pmr")] if self._cts else []
        if not self._train and any(source.case.has("pmr_true_ct") for source in self._mrs):
            self._mrs = [source for source in self._mrs if source.case.has("pmr_true_ct")]

    def __len__(self) -> int:
        return len(self._mrs) * self._config.samples_per_case

    def make(self, index: int, rng: np.random.Generator) -> Sample:
        source = self._mrs[index % len(self._mrs)]
        mr = self._prepared(source, "pmr")
        place = rng.uniform(0.1, 0.9, 3)
        here = self._indices(mr["box"], place, rng)
        mr_patch = sampled(mr["image"], here, outside=-1.0)
        known = "true_ct" in mr
        # where no CT of this MR is known the two are there all the same, so that batches may mix
        true_ct = sampled(mr["true_ct"], here, outside=-1.0) if known else torch.full_like(mr_patch, -1.0)
        body = (sampled(mr["body"], here) > 0.5).float() if known else torch.zeros_like(mr_patch)
        paired: Sample = {"true_ct": true_ct, "body": body, "case_id": source.case.id}
        if not self._train and known:
            return {"mr": mr_patch, "ct": true_ct, **paired}
        ct = self._prepared(self._other(source, rng), "pct")
        there = self._indices(ct["box"], place + rng.uniform(-0.1, 0.1, 3), rng)
        ct_patch = sampled(ct["image"], there, outside=-1.0)
        if not self._train:
            return {"mr": mr_patch, "ct": ct_patch, "case_id": source.case.id}
        mr_patch = bias_field(rng, mr_patch, self._config.bias)
        mr_patch = contrast(rng, mr_patch, self._config.contrast)
        mr_patch = noisy(rng, mr_patch, rng.uniform(0, self._config.noise))
        return {"mr": mr_patch, "ct": ct_patch, "has_true_ct": torch.tensor(known), **paired}

    def _other(self, source: Source, rng: np.random.Generator) -> Source:
        strangers = [
            other
            for other in self._cts
            if (other.cohort.digest, other.case.patient) != (source.cohort.digest, source.case.patient)
        ]
        choice = strangers or self._cts
        return choice[int(rng.integers(len(choice)))]

    def _indices(self, box: NDArray[np.generic], place: NDArray[np.float64], rng: np.random.Generator) -> Tensor:
        low, high = np.asarray(box, dtype=np.float64)
        half = np.asarray(self._config.patch) / 2
        # the patch stays in the body's box where that is larger than the patch
        room = np.maximum(high - low - 2 * half, 0)
        centre = (low + high) / 2 + (np.clip(place, 0, 1) - 0.5) * room
        turn = random_turn(rng, self._config.rotation_deg, self._config.scale) if self._train else np.eye(3)
        shift = centre - (np.asarray(self._config.patch) - 1) / 2
        return mapped(affine_about(self._config.patch, turn, shift), index_grid(self._config.patch))

    def _prepared(self, source: Source, name: str) -> Arrays:
        names = [name, "pmr_true_ct"] if name == "pmr" and source.case.has("pmr_true_ct") else [name]
        recipe = {"stage": "synthesis", "spacing_mm": self._config.spacing_mm, "window_hu": self._config.window_hu}
        recipe["couch_margin_mm"] = COUCH_MARGIN_MM
        return source.prepared(names, recipe, lambda: self._make(source, name))

    def _make(self, source: Source, name: str) -> Arrays:
        volume = source.volume(name)
        grid = covering_grid(volume.geometry, self._config.spacing_mm)
        if name == "pct":
            ct = resample(volume, grid, fill=self._config.window_hu[0])
            body = body_mask(ct).as_mask()
            return {"image": self._unit(ct, body), "box": _box(body)}
        scaled, _ = normalise_mr(volume)
        mr = resample(volume.with_data(scaled), grid, fill=-1.0)
        arrays: Arrays = {"image": mr.as_float().astype(np.float16), "box": _box(mr.as_float() > MR_BODY_UNIT)}
        if source.case.has("pmr_true_ct"):
            true_ct = resample(source.volume("pmr_true_ct"), grid, fill=self._config.window_hu[0])
            body = body_mask(true_ct).as_mask()
            arrays |= {"true_ct": self._unit(true_ct, body), "body": body.astype(np.uint8), "box": _box(body)}
        return arrays

    def _unit(self, ct: Volume, body: NDArray[np.bool_]) -> NDArray[np.float16]:
        """The CT without couch; where no patient is found it stays as it is."""
        steps = max(round(COUCH_MARGIN_MM / self._config.spacing_mm), 1)
        near = ndimage.binary_dilation(body, iterations=steps) if body.any() else True
        hu = np.where(near, ct.as_float(), self._config.window_hu[0])
        return ct_to_unit(hu, self._config.window_hu).astype(np.float16)


def _box(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Lowest and highest index of a mask along each axis, (2, 3), a hundredth of its voxels cut off at either end."""
    if not mask.any():
        return np.array([[0, 0, 0], mask.shape], dtype=np.float32)
    ends = []
    for axis in range(3):
        share = np.cumsum(mask.sum(axis=tuple(other for other in range(3) if other != axis)), dtype=np.float64)
        ends.append(np.searchsorted(share / share[-1], (0.01, 0.99)))
    return np.array(ends, dtype=np.float32).T


synthesis_loader = loader_of(_SynthesisSamples)
"""Batches of `mr` and `ct`, [B, 1, D, H, W] in [-1, 1], and `case_id` (the MR's cases).

In training `ct` comes from another patient, from about the same place in the body (the same patient where there is
only one); `true_ct`, `body` (1 inside) and `has_true_ct` ([B], bool) tell what is known of the MR's own CT, at the
same voxels. In validation `ct` is the `true_ct` where there is one; then `true_ct` and `body` stand in the batch.
"""
