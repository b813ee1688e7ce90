"""What a training writes down of itself."""

from __future__ import annotations

import pytest

from hepalign.config import load_config
from hepalign.tracking.provenance import preprocessing


@pytest.mark.parametrize("stage", ["synthesis", "inpainting", "registration"])
def test_how_a_network_saw_its_images_is_told(stage: str) -> None:
    chosen = load_config(stage, {"data": {"spacing_mm": 2.5, "window_hu": [-150, 250]}})
    assert preprocessing(chosen.component) == {"spacing_mm": 2.5, "window_hu": [-150.0, 250.0]}
