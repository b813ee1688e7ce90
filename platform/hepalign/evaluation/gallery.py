"""Pictures of one case: what was fused, where the field went, what was painted into the hole."""

from __future__ import annotations

import base64
import io

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from hepalign.evaluation.pairs import PAIRS, Pair, Patient
from hepalign.image.geometry import Geometry
from hepalign.image.resample import resample
from hepalign.image.volume import Volume
from hepalign.transform.displacement import DisplacementField, resample_field
from hepalign.transform.jacobian import jacobian_determinants
from hepalign.transform.warp import warp

CT_DISPLAY_HU = (-160.0, 240.0)
PICTURE_SPACING_MM = 2.0
CHECKER_MM = 30.0
QUIVER_MM = 18.0
BACKGROUND = "#0d1420"


def pair_picture(patient: Patient, pair: Pair, field: DisplacementField) -> str:
    """Coronal and axial strips through the tumour (or the liver): fixed, warped, fused, checkerboard, field, J.

    Returns a JPEG as a data URI.
    """
    moving_role, fixed_role = PAIRS[pair]
    fixed = patient.volume(fixed_role)
    field = resample_field(field, fixed.geometry)
    canonical = _canonical(fixed.geometry)
    still = _display(resample(fixed, canonical), fixed_role)
    moved = _display(resample(warp(patient.volume(moving_role), field), canonical), moving_role)
    outlines = [
        _outline(patient, role, canonical, field if role == moving_role else None) for role in (fixed_role, moving_role)
    ]
    vectors = np.stack(
        [
            resample(Volume(np.ascontiguousarray(field.vectors[..., a]), field.geometry), canonical).as_float()
            for a in range(3)
        ],
        axis=-1,
    )
    jacobian = resample(Volume(jacobian_determinants(field), field.geometry), canonical).as_float()
    centre = _centre(patient, fixed_role, canonical)
    figure = Figure(figsize=(15, 5.4), facecolor=BACKGROUND)
    for row, axis in enumerate((1, 2)):
        index = int(centre[axis])
        tiles = [_slice(v, axis, index) for v in (still, moved)]
        checker = _checker(tiles[0].shape, CHECKER_MM / PICTURE_SPACING_MM)
        for column in range(6):
            axes = figure.add_axes((column / 6 + 0.002, 0.5 - 0.5 * row, 1 / 6 - 0.004, 0.46))
            axes.set_axis_off()
            if column == 0:
                _grey(axes, tiles[0])
            elif column == 1:
                _grey(axes, tiles[1])
            elif column == 2:
                fused = np.stack([tiles[1], tiles[0], tiles[1]], axis=-1)
                axes.imshow(fused, origin="lower", aspect="equal")
            elif column == 3:
                _grey(axes, np.where(checker, tiles[0], tiles[1]))
            elif column == 4:
                _grey(axes, tiles[0] * 0.7)
                _arrows(axes, vectors, axis, index)
            else:
                shown = axes.imshow(_slice(jacobian, axis, index), origin="lower", cmap="RdBu_r", vmin=0, vmax=2)
                _bar(figure, shown, column, row)
            if column in (0, 1, 3):
                for outline, colour in zip(outlines, ("#39d98a", "#ffb020"), strict=True):
                    if outline is not None and _slice(outline, axis, index).any():
                        axes.contour(_slice(outline, axis, index), levels=[0.5], colors=[colour], linewidths=1.0)
            if row == 0:
                titles = (fixed_role, f"{moving_role} warped", "fused", "checkerboard", "displacement", "Jacobian")
                axes.set_title(titles[column], color="#c8d3e6", fontsize=11, pad=4)
    return _encode(figure)


def hole_picture(ict: Volume, inpainted: Volume, clean: Volume, hole: Volume) -> str:
    """The iCT, the inpainted CT and the true clean CT where the hole is largest; a JPEG as a data URI."""
    canonical = _canonical(ict.geometry)
    mask = resample(hole.with_data(hole.as_mask().astype(np.uint8)), canonical, mode="nearest").as_mask()
    index = int(mask.sum(axis=(0, 1)).argmax())
    figure = Figure(figsize=(15, 3.9), facecolor=BACKGROUND)
    images = [("ict with the coarse mask", ict), ("inpainted", inpainted), ("truth", clean)]
    shown = [_display(resample(volume, canonical), "ict") for _, volume in images]
    tiles = [(_slice(image, 2, index), title) for (title, _), image in zip(images, shown, strict=True)]
    error = np.abs(tiles[1][0] - tiles[2][0])
    for column, (tile, title) in enumerate([*tiles, (error, "|inpainted − truth|")]):
        axes = figure.add_axes((column / 4 + 0.002, 0.0, 1 / 4 - 0.004, 0.91))
        axes.set_axis_off()
        axes.set_title(title, color="#c8d3e6", fontsize=11, pad=4)
        if column == 3:
            axes.imshow(tile, origin="lower", cmap="magma", vmin=0, vmax=0.5)
        else:
            _grey(axes, tile)
        if column != 2 and _slice(mask, 2, index).any():
            axes.contour(_slice(mask, 2, index), levels=[0.5], colors=["#4cc9f0"], linewidths=0.9)
    return _encode(figure)


def _canonical(geometry: Geometry) -> Geometry:
    """An axis-aligned grid (R, A, S) at 2 mm over the image's box."""
    corners = geometry.corners_mm()
    low, high = corners.min(0), corners.max(0)
    count = np.maximum(2, np.ceil((high - low) / PICTURE_SPACING_MM)).astype(int) + 1
    shape = (int(count[0]), int(count[1]), int(count[2]))
    return Geometry.from_spacing(shape, PICTURE_SPACING_MM, origin_mm=low)


def _display(volume: Volume, role: str) -> NDArray[np.float32]:
    data = volume.as_float()
    low, high = np.percentile(data, (1, 99.5)) if role == "pmr" else CT_DISPLAY_HU
    return np.clip((data - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)


def _outline(patient: Patient, role: str, grid: Geometry, field: DisplacementField | None) -> NDArray[np.bool_] | None:
    mask = patient.mask(f"{role}_liver")
    if mask is None:
        return None
    mask = mask.with_data(mask.data.astype(np.uint8))
    if field is not None:
        mask = warp(mask, field, mode="nearest")
    return resample(mask, grid, mode="nearest").as_mask()


def _centre(patient: Patient, role: str, grid: Geometry) -> NDArray[np.int64]:
    for name in (f"{role}_tumour", f"{role}_liver"):
        mask = patient.mask(name)
        if mask is not None and mask.data.any():
            world = mask.geometry.index_to_world(np.argwhere(mask.data)).mean(0)
            return np.clip(np.round(grid.world_to_index(world)), 0, np.asarray(grid.shape) - 1).astype(np.int64)
    return np.asarray(grid.shape) // 2


def _slice(volume: NDArray[np.generic], axis: int, index: int) -> NDArray[np.float32]:
    # radiological: the patient's right stands on the left
    return np.asarray(np.take(volume, index, axis=axis).T[:, ::-1], np.float32)


def _checker(shape: tuple[int, ...], step: float) -> NDArray[np.bool_]:
    rows, columns = np.indices(shape)
    checker: NDArray[np.bool_] = ((rows // step).astype(int) + (columns // step).astype(int)) % 2 == 0
    return checker


def _grey(axes: object, tile: NDArray[np.float32]) -> None:
    axes.imshow(tile, origin="lower", cmap="gray", vmin=0, vmax=1, aspect="equal")  # type: ignore[attr-defined]


def _arrows(axes: object, vectors: NDArray[np.float32], axis: int, index: int) -> None:
    step = max(1, round(QUIVER_MM / PICTURE_SPACING_MM))
    plane = np.take(vectors, index, axis=axis)
    first, second = (a for a in range(3) if a != axis)
    u, v = -plane[..., first].T[:, ::-1], plane[..., second].T[:, ::-1]
    rows, columns = np.mgrid[step // 2 : u.shape[0] : step, step // 2 : u.shape[1] : step]
    length = np.hypot(u, v)[rows, columns]
    axes.quiver(  # type: ignore[attr-defined]
        columns, rows, u[rows, columns] / PICTURE_SPACING_MM, v[rows, columns] / PICTURE_SPACING_MM, length,
        cmap="plasma", angles="xy", scale_units="xy", scale=1, width=0.006, clim=(0, 25),
    )  # fmt: skip


def _bar(figure: Figure, shown: AxesImage, column: int, row: int) -> None:
    place = figure.add_axes(((column + 0.93) / 6, 0.55 - 0.5 * row, 0.006, 0.2))
    bar = figure.colorbar(shown, cax=place)
    bar.ax.tick_params(colors="#c8d3e6", labelsize=7)


def _encode(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpg", dpi=80, facecolor=figure.get_facecolor(), pil_kwargs={"quality": 82})
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
