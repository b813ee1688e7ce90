from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hepalign.nets import precision
from hepalign.nets.partial_conv import PartialConv3d
from hepalign.nets.precision import autocast, bfloat16_gains, channels_last


def leave_nan_in_freed_memory() -> None:
    for size in (1 << 12, 1 << 14, 1 << 16, 1 << 18):
        torch.full((size,), torch.nan)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["plain", "partial"])
def test_weight_gradients_of_shallow_grids_are_right_in_bfloat16(kind: str, depth: int) -> None:
    """Two voxels deep, oneDNN's own padding gives NaN or garbage; a registration network meets that at 32 voxels."""
    torch.manual_seed(0)
    layer = nn.Conv3d(16, 32, 3, padding=1) if kind == "plain" else PartialConv3d([16], 32)
    net = channels_last(nn.Sequential(layer))[0]
    image = torch.randn(1, 16, depth, 6, 6).contiguous(memory_format=torch.channels_last_3d)

    def gradient(reduced: bool) -> torch.Tensor:
        net.zero_grad()
        leave_nan_in_freed_memory()
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            out = net(image) if kind == "plain" else net([(image, torch.ones_like(image[:, :1]))])[0]
        out.float().square().mean().backward()
        assert net.weight.grad is not None
        return net.weight.grad.clone()

    truth = gradient(False)
    assert float((gradient(True) - truth).norm() / truth.norm()) < 0.02


def test_convolutions_of_slim_grids_are_right_in_bfloat16(root: Path) -> None:
    """oneDNN's own read what lay in memory: an inpainted CT had NaN and other tissue in its hole, now and then."""
    script = root / "tests/support/slim_convolutions.py"
    environment = os.environ | {"MALLOC_PERTURB_": "128"}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert not done.stdout, done.stdout


@pytest.mark.parametrize(
    ("named", "float32_over_bfloat16", "taken"), [(True, 4.0, True), (True, 0.6, False), (False, 4.0, False)]
)
def test_bfloat16_is_taken_where_it_was_measured_to_gain_not_where_the_processor_names_it(
    monkeypatch: pytest.MonkeyPatch, named: bool, float32_over_bfloat16: float, taken: bool
) -> None:
    now_s = 0.0

    def slow_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        nonlocal now_s
        now_s += float32_over_bfloat16 if left.dtype == torch.float32 else 1.0
        return left

    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: named)
    monkeypatch.setattr(torch, "mm", slow_product)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: now_s)
    bfloat16_gains.cache_clear()
    try:
        assert bfloat16_gains("cpu") is taken
        net, image = nn.Conv3d(1, 1, 1), torch.ones(1, 1, 2, 2, 2)
        with autocast("cpu"):
            assert net(image).dtype == (torch.bfloat16 if taken else torch.float32)
    finally:
        bfloat16_gains.cache_clear()


def test_a_product_is_timed_in_its_own_type_also_within_an_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = []
    product = torch.mm

    def seen(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        result = product(left, right)
        kinds.append(result.dtype)
        return result

    monkeypatch.setattr(torch, "mm", seen)
    with torch.autocast("cpu", torch.bfloat16):
        assert precision._cpu_gain(size=8, rounds=1) > 0
    assert kinds == [torch.float32, torch.bfloat16]
