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
    jacobian = Volume(jacobian_determinants(field), field.geometry)
    centre = _centre(patient, fixed_role, canonical)
    figure = Figure(figsize=(15, 5.4), facecolor=BACKGROUND)
    for row, axis in enumerate((1, 2)):
        plane = _plane(canonical, axis, int(centre[axis]))
        here = resample_field(field, plane)
        moved = _display(warp(patient.volume(moving_role), here), moving_role, patient.volume(moving_role))
        tiles = [_tile(_display(resample(fixed, plane), fixed_role, fixed), axis), _tile(moved, axis)]
        outlines = [_outline(patient, fixed_role, plane, None), _outline(patient, moving_role, plane, here)]
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
                _arrows(axes, here.vectors, axis)
            else:
                shown = axes.imshow(
                    _tile(resample(jacobian, plane).as_float(), axis), origin="lower", cmap="RdBu_r", vmin=0, vmax=2
                )
                _bar(figure, shown, column, row)
            if column in (0, 1, 3):
                for outline, colour in zip(outlines, ("#39d98a", "#ffb020"), strict=True):
                    if outline is not None and outline.any():
                        axes.contour(_tile(outline, axis), levels=[0.5], colors=[colour], linewidths=1.0)
            if row == 0:
                titles = (fixed_role, f"{moving_role} warped", "fused", "checkerboard", "displacement", "Jacobian")
                axes.set_title(titles[column], color="#c8d3e6", fontsize=11, pad=4)
    return _encode(figure)


def hole_picture(ict: Volume, inpainted: Volume, clean: Volume, hole: Volume) -> str:
    """The iCT, the inpainted CT and the true clean CT where the hole is largest; a JPEG as a data URI."""
    canonical = _canonical(ict.geometry)
    coarse = hole.with_data(hole.as_mask().astype(np.uint8))
    largest = int(resample(coarse, canonical, mode="nearest").as_mask().sum(axis=(0, 1)).argmax())
    plane = _plane(canonical, 2, largest)
    mask = _tile(resample(coarse, plane, mode="nearest").as_mask(), 2)
    figure = Figure(figsize=(15, 3.9), facecolor=BACKGROUND)
    images = [("ict with the coarse mask", ict), ("inpainted", inpainted), ("truth", clean)]
    tiles = [(_tile(_display(resample(image, plane), "ict", image), 2), title) for title, image in images]
    error = np.abs(tiles[1][0] - tiles[2][0])
    for column, (tile, title) in enumerate([*tiles, (error, "|inpainted − truth|")]):
        axes = figure.add_axes((column / 4 + 0.002, 0.0, 1 / 4 - 0.004, 0.91))
        axes.set_axis_off()
        axes.set_title(title, color="#c8d3e6", fontsize=11, pad=4)
        if column == 3:
            axes.imshow(tile, origin="lower", cmap="magma", vmin=0, vmax=0.5)
        else:
            _grey(axes, tile)
        if column != 2 and mask.any():
            axes.contour(mask, levels=[0.5], colors=["#4cc9f0"], linewidths=0.9)
    return _encode(figure)


def _canonical(geometry: Geometry) -> Geometry:
    """An axis-aligned grid (R, A, S) at 2 mm over the image's box."""
    corners = geometry.corners_mm()
    low, high = corners.min(0), corners.max(0)
    count = np.maximum(2, np.ceil((high - low) / PICTURE_SPACING_MM)).astype(int) + 1
    shape = (int(count[0]), int(count[1]), int(count[2]))
    return Geometry.from_spacing(shape, PICTURE_SPACING_MM, origin_mm=low)


def _plane(grid: Geometry, axis: int, index: int) -> Geometry:
    """One slice of a grid, as a grid: whole volumes need not be resampled for a picture."""
    start, shape = [0, 0, 0], list(grid.shape)
    start[axis], shape[axis] = index, 1
    return grid.crop((start[0], start[1], start[2]), (shape[0], shape[1], shape[2]))


def _display(volume: Volume, role: str, whole: Volume) -> NDArray[np.float32]:
    """Grey values 0 … 1; an MR's range is that of the whole image."""
    low, high = np.percentile(whole.as_float(), (1, 99.5)) if role == "pmr" else CT_DISPLAY_HU
    return np.clip((volume.as_float() - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)


def _outline(patient: Patient, role: str, plane: Geometry, field: DisplacementField | None) -> NDArray[np.bool_] | None:
    mask = patient.mask(f"{role}_liver")
    if mask is None:
        return None
    mask = mask.with_data(mask.data.astype(np.uint8))
    carried = resample(mask, plane, mode="nearest") if field is None else warp(mask, field, mode="nearest")
    return carried.as_mask()


def _centre(patient: Patient, role: str, grid: Geometry) -> NDArray[np.int64]:
    for name in (f"{role}_tumour", f"{role}_liver"):
        mask = patient.mask(name)
        if mask is not None and mask.data.any():
            world = mask.geometry.index_to_world(np.argwhere(mask.data)).mean(0)
            return np.clip(np.round(grid.world_to_index(world)), 0, np.asarray(grid.shape) - 1).astype(np.int64)
    return np.asarray(grid.shape) // 2


def _tile(plane: NDArray[np.generic], axis: int) -> NDArray[np.float32]:
    # radiological: the patient's right stands on the left
    return np.asarray(np.take(plane, 0, axis=axis).T[:, ::-1], np.float32)


def _checker(shape: tuple[int, ...], step: float) -> NDArray[np.bool_]:
    rows, columns = np.indices(shape)
    checker: NDArray[np.bool_] = ((rows // step).astype(int) + (columns // step).astype(int)) % 2 == 0
    return checker


def _grey(axes: object, tile: NDArray[np.float32]) -> None:
    axes.imshow(tile, origin="lower", cmap="gray", vmin=0, vmax=1, aspect="equal")  # type: ignore[attr-defined]


def _arrows(axes: object, vectors: NDArray[np.float32], axis: int) -> None:
    step = max(1, round(QUIVER_MM / PICTURE_SPACING_MM))
    plane = np.take(vectors, 0, axis=axis)
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
