"""Table 2 as Wei et al. (MICCAI 2019, arXiv 1907.13020) printed it: mean ± SD over 11 test patients."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Printed:
    """A printed mean and SD, Dice as a fraction, TRE in mm; `note` where it needs one."""

    mean: float
    sd: float
    note: str = ""


# The columns of ours that stand beside a column of the paper.
COLUMNS = {
    "FLIRT rigid": ("flirt", "flirt-cr"),
    "ANTs rigid": ("ants-rigid",),
    "ANTs SyN": ("ants-syn",),
    "Proposed": ("proposed-fast", "proposed-refine"),
}

_NOT_A_TARGET = "as printed; it cannot be right beside a Dice of 85.5 %, and is no target"
_HALF_FAILED = "as printed; an SD of 40 means that about half of the runs failed"

# (pair, structure, metric) -> column -> printed
TABLE_2: dict[tuple[str, str, str], dict[str, Printed]] = {
    ("pMR-iCT", "liver", "dice"): {
        "FLIRT rigid": Printed(0.4844, 0.4040, _HALF_FAILED),
        "ANTs rigid": Printed(0.8552, 0.0292),
        "ANTs SyN": Printed(0.8659, 0.0330),
        "Proposed": Printed(0.8696, 0.0300),
    },
    ("pMR-iCT", "liver", "tre_mm"): {
        "ANTs rigid": Printed(52.56, 9.85, _NOT_A_TARGET),
        "ANTs SyN": Printed(5.18, 2.43),
        "Proposed": Printed(4.93, 2.72),
    },
    ("pMR-pCT", "liver", "dice"): {
        "FLIRT rigid": Printed(0.4807, 0.4040, _HALF_FAILED),
        "ANTs rigid": Printed(0.8703, 0.0260),
        "ANTs SyN": Printed(0.8955, 0.0204),
        "Proposed": Printed(0.9059, 0.0173),
    },
    ("pMR-pCT", "liver", "tre_mm"): {
        "ANTs rigid": Printed(6.63, 2.73),
        "ANTs SyN": Printed(5.59, 2.01),
        "Proposed": Printed(4.67, 2.00),
    },
    ("pMR-pCT", "tumour", "dice"): {
        "FLIRT rigid": Printed(0.1288, 0.2576, _HALF_FAILED),
        "ANTs rigid": Printed(0.5110, 0.1713),
        "ANTs SyN": Printed(0.5534, 0.0570),
        "Proposed": Printed(0.6245, 0.0466),
    },
    ("pMR-pCT", "tumour", "tre_mm"): {
        "ANTs rigid": Printed(6.71, 2.27),
        "ANTs SyN": Printed(6.08, 1.40),
        "Proposed": Printed(3.89, 0.99),
    },
    ("pCT-iCT", "liver", "dice"): {"ANTs SyN": Printed(0.8790, 0.0525), "Proposed": Printed(0.8863, 0.0553)},
    ("pCT-iCT", "liver", "tre_mm"): {"ANTs SyN": Printed(5.06, 3.29), "Proposed": Printed(4.37, 3.30)},
}


def printed(pair: str, structure: str, metric: str, method: str) -> Printed | None:
    """The paper's figure for one of our methods, or None."""
    row = TABLE_2.get((pair, structure, metric), {})
    return next((row[column] for column, methods in COLUMNS.items() if method in methods and column in row), None)
