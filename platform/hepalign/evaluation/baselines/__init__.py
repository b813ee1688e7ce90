"""The peers, each behind one small interface."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from hepalign.errors import UsageError
from hepalign.evaluation.baselines.baseline import Baseline, Problem
from hepalign.transform.displacement import DisplacementField

__all__ = ["BASELINES", "Baseline", "Problem", "find_baselines"]

_HERE = "hepalign.evaluation.baselines"


def _lazy(module: str, function: str) -> Callable[[Problem], DisplacementField]:
    # ANTs, elastix and torch cost seconds to import: only a peer that runs pays.
    def engine(problem: Problem) -> DisplacementField:
        field: DisplacementField = getattr(import_module(f"{_HERE}.{module}"), function)(problem)
        return field

    return engine


_GREEDY_START = "picsl-greedy; rigid, then affine by NMI (100x40x0), coarse probe mask as -gm; deformable by"

BASELINES: dict[str, Baseline] = {
    baseline.name: baseline
    for baseline in (
        Baseline(
            "ants-rigid",
            "linear",
            "antspyx Rigid, Mattes MI, defaults, mask in every stage: a column of the paper's Table 2",
            _lazy("ants_engine", "ants_rigid"),
        ),
        Baseline(
            "ants-syn",
            "deformable",
            "antspyx SyN (affine + SyN, Mattes MI, 40x20x0), defaults, mask in every stage: the paper's strongest peer",
            _lazy("ants_engine", "ants_syn"),
        ),
        Baseline(
            "greedy-nmi",
            "deformable",
            f"{_GREEDY_START} NMI, -s 3vox 1vox, 100x40x0: the strongest we found across modalities",
            _lazy("greedy", "greedy_nmi"),
            module="picsl_greedy",
        ),
        Baseline(
            "greedy-wncc",
            "deformable",
            f"{_GREEDY_START} WNCC 4x4x4, -s 3vox 1vox, 100x40x0: the strongest we found within CT",
            _lazy("greedy", "greedy_wncc"),
            module="picsl_greedy",
        ),
    )
}


def find_baselines(names: list[str] | tuple[str, ...]) -> list[Baseline]:
    """The peers of these names, in this order.

    Raises:
        UsageError: `unknown_baseline`, naming those there are.
    """
    unknown = [name for name in names if name not in BASELINES]
    if unknown:
        raise UsageError(
            f"no baseline is called {', '.join(unknown)}; there are {', '.join(BASELINES)}", code="unknown_baseline"
        )
    return [BASELINES[name] for name in names]
