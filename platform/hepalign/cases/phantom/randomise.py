"""Random intensities per organ: what teaches a network to look at shapes (SynthMorph, Hoffmann et al. 2022)."""

from __future__ import annotations

import numpy as np

from hepalign.cases.phantom.tissues import CT_HU, MR_RELAXATION, Look

# Air stays air and metal metal; everything else may look like anything a scanner shows.
KEPT_IN_CT = ("air", "gas", "lung", "bone")


def random_ct_look(rng: np.random.Generator) -> Look:
    """Random HU per soft tissue, -150 to 250; air, lung and bone stay near what they are."""
    values = {tissue: float(hu[0]) for tissue, hu in CT_HU.items()}
    for tissue in values:
        if tissue not in KEPT_IN_CT:
            values[tissue] = float(rng.uniform(-150, 250))
    return Look(values, {tissue: float(rng.uniform(0, 12)) for tissue in values if tissue not in ("air", "gas")})


def random_mr_look(rng: np.random.Generator) -> Look:
    """A random signal per tissue; air stays dark."""
    values = {tissue: float(rng.uniform(0.03, 1.0)) for tissue in MR_RELAXATION}
    values.update(air=0.0, gas=0.0, lung=float(rng.uniform(0, 0.1)))
    return Look(values, {tissue: float(rng.uniform(0, 0.05)) for tissue in values if values[tissue] > 0})
