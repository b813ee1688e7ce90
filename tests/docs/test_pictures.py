"""The script that draws the phantom page's pictures runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def test_the_phantom_page_s_pictures_are_drawn(root: Path, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("pictures", root / "docs/pictures.py")
    assert spec is not None
    assert spec.loader is not None
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    pictures.draw_phantoms(tmp_path / "phantoms.jpg", pictures.PHANTOMS[:2], (40, 40, 30))
    assert (tmp_path / "phantoms.jpg").read_bytes()[:2] == b"\xff\xd8"
    assert (tmp_path / "phantoms.jpg").stat().st_size > 5000
