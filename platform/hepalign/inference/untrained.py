"""A release of small, untrained networks: what tests, the doctor and a first look at the API run on."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from hepalign.inference.bundle import build_bundle
from hepalign.nets.checkpoint import save_weights
from hepalign.nets.cyclegan import GeneratorConfig, ResNetGenerator
from hepalign.nets.partial_conv import PConvUNet
from hepalign.nets.regnet import RegNet, RegNetConfig
from hepalign.nets.unet import InpaintingNetConfig


def make_untrained_bundle(folder: Path, seed: int = 0) -> Path:
    """Write a release whose networks have random weights (the registration network's is near the identity)."""
    torch.manual_seed(seed)
    generator, inpainting, registration = GeneratorConfig(), InpaintingNetConfig(), RegNetConfig()
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        save_weights(ResNetGenerator(generator), generator, place, "synthesis")
        save_weights(PConvUNet(inpainting), inpainting, place, "inpainting")
        save_weights(RegNet(registration), registration, place, "registration")
        stages = dict.fromkeys(("synthesis", "inpainting", "registration"), place)
        return build_bundle(folder, stages, name="untrained", version=str(seed))
