"""Paints an anatomy at the points that an image's voxels come from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hepalign.cases.phantom.anatomy import Anatomy
from hepalign.cases.phantom.draft import Organ
from hepalign.cases.phantom.tissues import Look

Array = NDArray[np.float32]
BOX_STRIDE = 4


class Painter:
    """Values of several looks on one grid; each `paint` lays an organ over what is there.

    Args:
        anatomy: the person.
        points: anatomy points (3, D, H, W) of the voxels.
        spacing_mm: edge length over which a border's partial volume spreads.
        looks: one image is painted for each.
    """

    def __init__(self, anatomy: Anatomy, points: Array, spacing_mm: float, looks: Sequence[Look]) -> None:
        wobble = anatomy.wobble.read(points)
        self.anatomy = anatomy
        self.points = points + wobble[:3]
        self.texture = wobble[3] * np.float32(0.6) + wobble[4] * np.float32(0.8)
        self.spacing_mm = spacing_mm
        self.looks = looks
        self.images = [np.full(points.shape[1:], look.values["air"], np.float32) for look in looks]
        strided = self.points[:, ::BOX_STRIDE, ::BOX_STRIDE, ::BOX_STRIDE]
        self._strided = np.ascontiguousarray(strided)
        self._slack_mm = BOX_STRIDE * spacing_mm * 1.8

    def box(self, organ: Organ) -> tuple[slice, ...] | None:
        """The part of the grid that can lie in an organ's box, None where there is none."""
        slack = self._slack_mm
        inside = np.ones(self._strided.shape[1:], bool)
        for axis in range(3):
            inside &= self._strided[axis] >= organ.low[axis] - slack
            inside &= self._strided[axis] <= organ.high[axis] + slack
        if not inside.any():
            return None
        slices = []
        for axis in range(3):
            hit = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
            slices.append(slice(max(0, (hit[0] - 1) * BOX_STRIDE), (hit[-1] + 1) * BOX_STRIDE + 1))
        return tuple(slices)

    def paint(self, organ: Organ) -> tuple[tuple[slice, ...], NDArray[np.bool_]] | None:
        """Lays an organ over the images, its border blended over one voxel; returns its box and voxels there."""
        box = self.box(organ)
        if box is None:
            return None
        distance = organ.distance(self.points[(slice(None), *box)])
        share = np.clip(np.float32(0.5) - distance / np.float32(self.spacing_mm), 0, 1)
        for image, look in zip(self.images, self.looks, strict=True):
            value = np.float32(look.values[organ.tissue])
            texture = look.textures.get(organ.tissue, 0.0)
            target = value + np.float32(texture) * self.texture[box] if texture else value
            part = image[box]
            part += share * (target - part)
        return box, distance < 0

    def body(self) -> NDArray[np.bool_]:
        """Voxels of the patient."""
        return self.anatomy.body(self.points) < 0

    def mask(self, organ: Organ) -> NDArray[np.bool_]:
        """Voxels whose centre lies in the organ."""
        mask = np.zeros(self.points.shape[1:], bool)
        box = self.box(organ)
        if box is not None:
            mask[box] = organ.distance(self.points[(slice(None), *box)]) < 0
        return mask
