"""pMR to synthetic CT."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor

from hepalign.cases.placing import covering_grid
from hepalign.errors import WorkFailedError
from hepalign.image.intensity import normalise_mr, unit_to_ct
from hepalign.image.resample import resample
from hepalign.image.volume import Volume
from hepalign.inference.bundle import Bundle
from hepalign.inference.tensors import device_of, sliding_window
from hepalign.nets.cyclegan import GeneratorConfig
from hepalign.nets.precision import autocast

# A window of which less than this share is brighter than an MR's background shows air alone. The network's instance
# normalisation would blow its noise up into tissue.
BACKGROUND_UNIT, LEAST_SHARE = -0.8, 0.002


def synthesise(bundle: Bundle, pmr: Volume) -> Volume:
    """The CT that the MR would look like, HU as float32, on the pMR's own grid.

    The MR is normalised, read at the network's spacing, run in windows of the size it was trained on, and read back.

    Raises:
        BadInputError: `constant_volume`.
        WorkFailedError: `network_failed` for values that are not finite.
    """
    net = bundle.networks["synthesis"]
    config = cast("GeneratorConfig", net.config)
    scaled, _ = normalise_mr(pmr)
    unit = pmr.with_data(scaled)
    if config.spacing_mm is not None:
        unit = resample(unit, covering_grid(pmr.geometry, config.spacing_mm), fill=-1.0)
    device = device_of(net)
    image = torch.from_numpy(np.ascontiguousarray(unit.as_float()))[None, None].to(device)

    def run(patches: Tensor) -> Tensor:
        result = torch.full_like(patches, -1.0)
        shown = (patches > BACKGROUND_UNIT).float().mean((1, 2, 3, 4)) >= LEAST_SHARE
        if shown.any():
            with autocast(device):
                result[shown] = net(patches[shown]).float()
        return result

    with torch.inference_mode():
        synthetic = sliding_window(run, image, config.patch)
    if not torch.isfinite(synthetic).all():
        raise WorkFailedError(
            "the synthesis network gave no finite values for this MR: plan with another release", code="network_failed"
        )
    hu = unit_to_ct(synthetic[0, 0].cpu().numpy(), config.window_hu)
    return resample(unit.with_data(hu), pmr.geometry, fill=config.window_hu[0])
