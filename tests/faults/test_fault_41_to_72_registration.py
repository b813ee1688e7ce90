"""What registration does with pairs it cannot trust, and with networks that fail."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_pairs import SmallPair, body_ct, liver_mask, small_pair
from torch import Tensor, nn

from hepalign.errors import BadInputError
from hepalign.image.geometry import Geometry
from hepalign.image.volume import Volume
from hepalign.inference import guide as guiding
from hepalign.inference.bundle import Bundle, load_bundle
from hepalign.inference.guide import guide
from hepalign.inference.inpaint import Inpainted
from hepalign.inference.pair import Effort, Levels
from hepalign.inference.planner import Plan, plan
from hepalign.inference.register import register
from hepalign.inference.result import GuideResult
from hepalign.inference.untrained import make_untrained_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(make_untrained_bundle(tmp_path_factory.mktemp("release")))


@pytest.fixture(scope="module")
def pair() -> SmallPair:
    return small_pair(1)


class _Broken(nn.Module):
    """A registration network whose velocities are all of one value, or noise of that size."""

    def __init__(self, value: float, noise: bool) -> None:
        super().__init__()
        self.value, self.noise = value, noise

    def forward(self, inputs: Tensor) -> Tensor:
        velocity = torch.full((1, 3, *inputs.shape[2:]), self.value)
        if self.noise:
            velocity = self.value * torch.randn(velocity.shape, generator=torch.Generator().manual_seed(0))
        return velocity


def broken(bundle: Bundle, value: float, *, noise: bool = False) -> Bundle:
    return replace(bundle, networks={**bundle.networks, "registration": _Broken(value, noise)})


def as_it_is(bundle: Bundle, ict: Volume, probe_mask: Volume, prior: Volume | None) -> Inpainted:
    return Inpainted(ict, probe_mask)


def made_plan(bundle: Bundle, pct: Volume, *, liver: bool) -> Plan:
    labels = {"pct_liver": liver_mask(pct)} if liver else {}
    return plan(bundle, pct, pct, labels=labels, engine="learned", synthesise=lambda bundle, pmr: pmr)


def guided(bundle: Bundle, pair: SmallPair, *, liver: bool = True) -> GuideResult:
    made = made_plan(bundle, pair.moving, liver=liver)
    return guide(bundle, made, pair.fixed, pair.probe_mask, engine="fast", inpaint=as_it_is)


def test_fault_41_no_liver_mask_is_a_warning(bundle: Bundle, pair: SmallPair) -> None:
    result = guided(bundle, pair, liver=False)
    assert any("liver" in warning for warning in result.warnings)
    assert result.labels_on_ict is None


def test_fault_42_no_overlap_is_refused(bundle: Bundle, pair: SmallPair) -> None:
    affine = pair.fixed.geometry.affine.copy()
    affine[:3, 3] += 3000
    far = Volume(pair.fixed.data, Geometry(pair.fixed.geometry.shape, affine))
    with pytest.raises(BadInputError) as caught:
        register(bundle, pair.moving, far)
    assert caught.value.code == "no_overlap"
    assert caught.value.status == 422


def test_fault_43_another_patient_is_rejected(bundle: Bundle, pair: SmallPair) -> None:
    result = register(bundle, body_ct(77), pair.fixed, probe_mask=pair.probe_mask)
    assert result.quality["status"] == "reject"
    assert result.quality["reasons"]
    right = register(bundle, pair.moving, pair.fixed, probe_mask=pair.probe_mask)
    assert right.quality["status"] == "accept"


@pytest.mark.parametrize(("value", "noise"), [(float("nan"), False), (30.0, True)], ids=["not finite", "folding"])
def test_fault_71_a_failing_network_falls_back_to_refinement(
    bundle: Bundle, pair: SmallPair, value: float, noise: bool
) -> None:
    failing = broken(bundle, value, noise=noise)
    result = guide(
        failing,
        made_plan(bundle, pair.moving, liver=True),
        pair.fixed,
        pair.probe_mask,
        engine="fast",
        inpaint=as_it_is,
    )
    assert result.quality["method"] == "affine+coarse+refine"
    assert result.degraded
    assert any("network" in warning for warning in result.warnings)
    assert pair.error_mm(result.field_ict_from_pct) < 3.0


def test_fault_71_a_hole_that_the_network_could_not_fill_is_told(bundle: Bundle, pair: SmallPair) -> None:
    def failed(bundle: Bundle, ict: Volume, probe_mask: Volume, prior: Volume | None) -> Inpainted:
        return Inpainted(ict, probe_mask, ("the inpainting network failed",))

    made = made_plan(bundle, pair.moving, liver=True)
    result = guide(bundle, made, pair.fixed, pair.probe_mask, engine="fast", inpaint=failed)
    assert result.degraded
    assert "the inpainting network failed" in result.warnings


def test_fault_72_when_the_fallback_fails_too_nothing_is_warped(
    bundle: Bundle, pair: SmallPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = made_plan(bundle, pair.moving, liver=True)

    def not_finite(self: Levels, residual: Tensor, effort: Effort, deadline: float | None = None) -> Tensor:
        return residual * float("nan")

    monkeypatch.setattr(Levels, "refine", not_finite)
    result = guiding.guide(broken(bundle, float("nan")), made, pair.fixed, pair.probe_mask, inpaint=as_it_is)
    assert result.quality["status"] == "reject"
    assert result.labels_on_ict is None
    assert np.isfinite(result.field_ict_from_pct.vectors).all()
