"""The picture beside a result: fused slices, the synthetic hole marked, the verdict and the research-use notice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hepalign.inference.workgrid import canonical

if TYPE_CHECKING:
    from hepalign.inference.result import GuideResult

WINDOW_HU = (-150.0, 250.0)
PLANES = ("sagittal", "coronal", "axial")
STATUS_COLOUR = {"accept": "tab:green", "review": "tab:orange", "reject": "tab:red"}


def write_overview(result: GuideResult, path: Path) -> None:
    """Three planes through the tumour (or the hole): iCT, pCT over it, pMR over it, with labels and hole outlined."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ict, pct, pmr = (canonical(v) for v in (result.ict, result.pct_on_ict, result.pmr_on_ict))
    hole = canonical(result.inpainted_mask).as_mask()
    labels = result.labels_on_ict
    tumour = None if labels is None else canonical(labels.volume.with_data(labels.mask("tumour"))).as_mask()
    liver = None if labels is None else canonical(labels.volume.with_data(np.asarray(labels.volume.data) > 0)).as_mask()
    centre = _centre(tumour if tumour is not None and tumour.any() else hole)
    spacing = ict.geometry.spacing_mm

    figure = Figure(figsize=(12, 9.5), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, 3)
    low, high = np.percentile(pmr.as_float(), (1, 99.5))
    for column, plane in enumerate(PLANES):
        across, up = (axis for axis in range(3) if axis != column)
        aspect = spacing[up] / spacing[across]

        def cut(volume: NDArray[np.generic], column: int = column) -> NDArray[np.generic]:
            plane: NDArray[np.generic] = np.take(volume, centre[column], axis=column).T
            return plane

        base: dict[str, Any] = {
            "cmap": "gray",
            "vmin": WINDOW_HU[0],
            "vmax": WINDOW_HU[1],
            "origin": "lower",
            "aspect": aspect,
        }
        shown = (("iCT", None), ("pCT over iCT", pct), ("pMR over iCT", pmr))
        for row, (name, overlay) in enumerate(shown):
            ax = axes[row, column]
            ax.imshow(cut(ict.as_float()), **base)
            if overlay is not None:
                limits = WINDOW_HU if overlay is pct else (float(low), float(high))
                ax.imshow(
                    cut(overlay.as_float()), cmap="hot", alpha=0.45, vmin=limits[0], vmax=limits[1],
                    origin="lower", aspect=aspect,
                )  # fmt: skip
            for mask, colour in ((hole, "cyan"), (liver, "lime"), (tumour, "magenta")):
                if mask is not None and cut(mask).any():
                    ax.contour(cut(mask).astype(float), [0.5], colors=colour, linewidths=0.8)
            ax.set_title(f"{name}, {plane}", color="white", fontsize=9)
            if column > 0:
                ax.invert_xaxis()  # radiological: the patient's right is on the left
            ax.set_axis_off()
    status = str(result.quality["status"])
    figure.suptitle(
        f"{status.upper()}   RESEARCH USE ONLY   cyan: inpainted, synthetic voxels; green: liver; magenta: tumour",
        color=STATUS_COLOUR.get(status, "white"), fontsize=11,
    )  # fmt: skip
    figure.savefig(path, dpi=80, facecolor="black")


def _centre(mask: NDArray[np.bool_]) -> tuple[int, int, int]:
    if not mask.any():
        i, j, k = (n // 2 for n in mask.shape)
        return i, j, k
    i, j, k = (round(float(axis.mean())) for axis in mask.nonzero())
    return i, j, k
