from __future__ import annotations

from itertools import combinations_with_replacement

import pytest
import torch

from hepalign.inference import normal_equations as module
from hepalign.inference.normal_equations import normal_equations


@pytest.mark.parametrize("slab_voxels", [1, 1 << 14], ids=["plane by plane", "at once"])
def test_sums_of_slopes_and_differences(monkeypatch: pytest.MonkeyPatch, slab_voxels: int) -> None:
    monkeypatch.setattr(module, "SLAB_VOXELS", slab_voxels)
    generator = torch.Generator().manual_seed(0)
    warped, fixed = torch.rand(2, 5, 6, 7, 3, generator=generator, dtype=torch.float64)
    weight = torch.rand(5, 6, 7, 1, generator=generator, dtype=torch.float64)
    found, cost = normal_equations(warped, fixed, weight)
    # an image that goes on level beyond its border has half of the one-sided slope there
    padded = torch.nn.functional.pad((warped + fixed).movedim(-1, 0)[None] / 2, [1] * 6, mode="replicate")[0]
    inner = padded[:, 1:-1, 1:-1, 1:-1]
    slopes = [
        (padded.narrow(axis, 2, n) - padded.narrow(axis, 0, n)).movedim(0, -1)[
            tuple(slice(None) if other == axis else slice(1, -1) for other in (1, 2, 3))
        ] / 2
        for axis, n in zip((1, 2, 3), inner.shape[1:], strict=True)
    ]  # fmt: skip
    pairs = sorted(combinations_with_replacement(range(3), 2), key=lambda pair: (pair[0] != pair[1], pair))
    expected = [(slopes[a] * slopes[b] * weight).sum(-1) for a, b in pairs]
    expected += [(slope * (fixed - warped) * weight).sum(-1) for slope in slopes]
    torch.testing.assert_close(found, torch.stack(expected))
    assert cost == pytest.approx(float(((fixed - warped).square() * weight).sum()))


def test_an_axis_of_one_voxel_has_no_slope() -> None:
    warped, fixed = torch.rand(2, 1, 4, 4, 2, generator=torch.Generator().manual_seed(0))
    found, _cost = normal_equations(warped, fixed, torch.ones(1, 4, 4, 1))
    assert not found[0].any()
    assert found[1].any()
