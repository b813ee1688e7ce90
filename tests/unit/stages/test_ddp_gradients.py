"""Two gloo workers get the gradients of one process: CycleGAN's two passes do not disturb each other under DDP."""

from __future__ import annotations

import stage_gradients as helper
from torch import Tensor


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        # bfloat16 convolutions (where the machine has them) sum in another order for another batch size
        scale = float(gradient.abs().max()) + 1e-4
        assert float((found[name] - gradient).abs().max()) < 0.03 * scale, name


def test_two_workers_equal_one() -> None:
    synthesis, inpainting = helper.two_workers()
    assert_same(synthesis, helper.gradients(helper.synthesis_stage(), helper.synthesis_batch()))
    assert_same(inpainting, helper.gradients(helper.inpainting_stage(), helper.inpainting_batch()))
    assert {name.split(".")[0] for name in synthesis} == {"to_ct", "to_mr", "judge_ct", "judge_mr"}
