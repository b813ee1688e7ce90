"""The batches of each stage: a typed config and a loader apiece."""

from __future__ import annotations

from hepalign.cases.inpainting_data import InpaintingData, inpainting_loader
from hepalign.cases.loading import EpochLoader
from hepalign.cases.registration_data import RegistrationData, registration_loader
from hepalign.cases.synthesis_data import SynthesisData, synthesis_loader

__all__ = [
    "EpochLoader",
    "InpaintingData",
    "RegistrationData",
    "SynthesisData",
    "inpainting_loader",
    "registration_loader",
    "synthesis_loader",
]
