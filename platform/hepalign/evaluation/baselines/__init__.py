"""The peers, each behind one small interface."""

from __future__ import annotations

from hepalign.errors import UsageError
from hepalign.evaluation.baselines.baseline import Baseline

__all__ = ["BASELINES", "Baseline", "find_baselines"]

_GREEDY_START = (
    "picsl-greedy, 100x40x0 (x20 at full resolution above 3 mm voxels, 100x40 on tiny grids), probe mask as -gm; "
    "rigid, then affine by NMI (rigid kept where the affine runs off); a second try where the field is not finite; "
    "deformable by"
)

BASELINES: dict[str, Baseline] = {
    baseline.name: baseline
    for baseline in (
        Baseline(
            "ants-rigid",
            "linear",
            "antspyx Rigid, Mattes MI, defaults, mask in every stage: a column of the paper's Table 2",
            "ants_engine.ants_rigid",
        ),
        Baseline(
            "ants-syn",
            "deformable",
            "antspyx SyN (affine + SyN, Mattes MI, 40x20x0), defaults, mask in every stage: the paper's strongest peer",
            "ants_engine.ants_syn",
        ),
        Baseline(
            "greedy-nmi",
            "deformable",
            f"{_GREEDY_START} NMI, -s 3vox 1vox: the strongest we found across modalities",
            "greedy.greedy_nmi",
            module="picsl_greedy",
        ),
        Baseline(
            "greedy-wncc",
            "deformable",
            f"{_GREEDY_START} WNCC in windows of 9 mm (4x4x4 at 2.2 mm voxels), -s 3vox 1vox: the strongest we found "
            "within CT; it diverges between MR and CT",
            "greedy.greedy_wncc",
            module="picsl_greedy",
        ),
        Baseline(
            "elastix",
            "deformable",
            "itk-elastix; rigid, affine, B-splines 16 mm apart, Mattes MI, 4 resolutions of 500 iterations on 2048 "
            "new samples, mask; its default bending energy left out, which outweighs the MI",
            "elastix_engine.elastix",
            module="itk",
        ),
        Baseline(
            "convexadam",
            "deformable",
            "ANTs affine, then ConvexAdam-MIND as published (grid 6, half width 4, 80 Adam steps) at 2.5 mm; the hole "
            "filled from the nearest valid voxel, which is what its own mask option does",
            "convex_adam.convex_adam",
            module="convexAdam",
        ),
        Baseline(
            "flirt",
            "linear",
            "FSL's flirt, rigid, correlation ratio, defaults, valid mask as -refweight: in the paper's Table 2",
            "flirt.flirt",
            binary="flirt",
        ),
        Baseline(
            "flirt-cr",
            "linear",
            "own correlation-ratio search with FLIRT's schedule (8 mm: 60°, 18° over ±90°; best three and the start "
            "at 4, then 2 mm), rigid, valid voxels only",
            "correlation_ratio.flirt_cr",
        ),
        Baseline(
            "direct-mi",
            "deformable",
            "ANTs affine, then a dense field by Adam on Parzen MI at 8 and 4 mm, valid voxels only: no synthesis",
            "direct.direct_mi",
        ),
        Baseline(
            "direct-mind",
            "deformable",
            "ANTs affine, then a dense field by Adam on MIND-SSC at 8 and 4 mm, valid voxels only: no synthesis",
            "direct.direct_mind",
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
