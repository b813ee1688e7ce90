"""The picture beside a result: fused slices, the synthetic hole marked, the verdict and the research-use notice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from hepalign.image.volume import Volume
from hepalign.inference.workgrid import canonical

if TYPE_CHECKING:
    from hepalign.inference.result import GuideResult

# Drawn with Pillow: a plotting library takes longer for this picture than a fast guide takes for the registration.
WINDOW_HU = (-150.0, 250.0)
PLANES = ("sagittal", "coronal", "axial")
STATUS_COLOUR = {"accept": (44, 160, 44), "review": (255, 127, 14), "reject": (214, 39, 40)}
HOLE, LIVER, TUMOUR = (0, 255, 255), (0, 255, 0), (255, 0, 255)
OVERLAY = 0.45
PANEL, TITLE, MARGIN = (310, 226), 20, 5

Plane = NDArray[np.generic]


def write_overview(result: GuideResult, path: Path) -> None:
    """Three planes through the tumour (or the hole): iCT, pCT over it, pMR over it, with labels and hole outlined."""
    ict, pct, pmr = (canonical(v) for v in (result.ict, result.pct_on_ict, result.pmr_on_ict))
    hole = canonical(result.inpainted_mask).as_mask()
    labels = result.labels_on_ict
    tumour = None if labels is None else canonical(labels.volume.with_data(labels.mask("tumour"))).as_mask()
    liver = None if labels is None else canonical(labels.volume.with_data(np.asarray(labels.volume.data) > 0)).as_mask()
    centre = _centre(tumour if tumour is not None and tumour.any() else hole)
    outlines = [(mask, colour) for mask, colour in ((hole, HOLE), (liver, LIVER), (tumour, TUMOUR)) if mask is not None]

    size = (3 * (PANEL[0] + MARGIN) + MARGIN, 3 * (PANEL[1] + TITLE) + TITLE + MARGIN)
    picture = Image.new("RGB", size)
    draw = ImageDraw.Draw(picture)
    status = str(result.quality["status"])
    draw.text(
        (size[0] // 2, 3),
        f"{status.upper()}   RESEARCH USE ONLY   cyan: inpainted, synthetic voxels; green: liver; magenta: tumour",
        fill=STATUS_COLOUR.get(status, "white"), font=ImageFont.load_default(14), anchor="ma",
    )  # fmt: skip
    shown = (("iCT", None, WINDOW_HU), ("pCT over iCT", pct, WINDOW_HU), ("pMR over iCT", pmr, _window(pmr)))
    for row, (name, over, window) in enumerate(shown):
        for column, plane in enumerate(PLANES):
            left, top = MARGIN + column * (PANEL[0] + MARGIN), TITLE + row * (PANEL[1] + TITLE)
            middle = left + PANEL[0] // 2
            draw.text((middle, top + 3), f"{name}, {plane}", fill="white", font=ImageFont.load_default(12), anchor="ma")
            panel = _panel(ict, over, window, outlines, column, centre[column])
            picture.paste(panel, (middle - panel.width // 2, top + TITLE + (PANEL[1] - panel.height) // 2))
    # the last tenth of its bytes would take longer than all the drawing
    picture.save(path, compress_level=1)


def _panel(
    ict: Volume,
    over: Volume | None,
    window: tuple[float, float],
    outlines: list[tuple[NDArray[np.bool_], tuple[int, int, int]]],
    axis: int,
    index: int,
) -> Image.Image:
    """One slice across `axis`, an image over it, and the outlines of masks; the patient's right is on the left."""

    def cut(data: Plane) -> Plane:
        upright: Plane = np.take(data, index, axis=axis).T[::-1]
        return upright[:, ::-1] if axis > 0 else upright

    grey = _shades(cut(np.asarray(ict.data)), WINDOW_HU)
    colour = np.repeat(grey[..., None], 3, axis=-1)
    if over is not None:
        colour = (1 - OVERLAY) * colour + OVERLAY * _hot(_shades(cut(np.asarray(over.data)), window))
    across, up = (ict.geometry.spacing_mm[other] for other in range(3) if other != axis)
    extent = grey.shape[1] * across, grey.shape[0] * up
    scale = min(PANEL[0] / extent[0], PANEL[1] / extent[1])
    size = max(1, round(extent[0] * scale)), max(1, round(extent[1] * scale))
    panel = np.array(Image.fromarray(colour.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR))
    for mask, line in outlines:
        fine = Image.fromarray(cut(mask).astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
        panel[_edge(np.asarray(fine) > 127)] = line
    return Image.fromarray(panel)


def _shades(data: Plane, window: tuple[float, float]) -> NDArray[np.float32]:
    low, high = window
    shades: NDArray[np.float32] = np.clip((data.astype(np.float32) - low) / max(high - low, 1e-6), 0, 1) * 255
    return shades


def _hot(shades: NDArray[np.float32]) -> NDArray[np.float32]:
    """Black, red, yellow, white."""
    return np.clip(3 * shades[..., None] - np.array([0.0, 255.0, 510.0], np.float32), 0, 255)


def _edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of the mask that have a neighbour outside of it."""
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    edge: NDArray[np.bool_] = mask & ~inner
    return edge


def _window(volume: Volume) -> tuple[float, float]:
    # every third voxel along each axis says as much as all of them
    low, high = np.percentile(np.asarray(volume.data)[::3, ::3, ::3], (1, 99.5))
    return float(low), float(high)


def _centre(mask: NDArray[np.bool_]) -> tuple[int, int, int]:
    if not mask.any():
        i, j, k = (n // 2 for n in mask.shape)
        return i, j, k
    i, j, k = (round(float(axis.mean())) for axis in mask.nonzero())
    return i, j, k
