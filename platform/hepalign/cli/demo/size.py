"""The demo's two sizes: the same steps with other numbers."""

from __future__ import annotations

from dataclasses import dataclass

from hepalign.cases.case import Split


@dataclass(frozen=True)
class DemoSize:
    """Numbers of one size of the demo.

    Args:
        shape: voxels of the CT grid.
        spacing_mm: isotropic spacing.
        patients: phantom patients in train, val and test.
        pairs: simulated pairs from each real CT.
        configs: prefix of the stages' configurations in jobs/configs.
        baselines: the peers of the evaluation.
    """

    shape: tuple[int, int, int]
    spacing_mm: float
    patients: dict[Split, int]
    pairs: int
    configs: str
    baselines: tuple[str, ...]


SIZES = {
    "full": DemoSize(
        shape=(96, 96, 72),
        spacing_mm=3.8,
        patients={"train": 9, "val": 2, "test": 3},
        pairs=3,
        configs="demo",
        baselines=("ants-rigid", "ants-syn", "greedy-nmi", "greedy-wncc"),
    ),
    "smoke": DemoSize(
        shape=(48, 48, 40),
        spacing_mm=7.0,
        patients={"train": 2, "val": 1, "test": 1},
        pairs=1,
        configs="smoke",
        baselines=("ants-rigid", "greedy-nmi"),
    ),
}
