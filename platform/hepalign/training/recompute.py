"""Activation checkpointing: what a network's blocks hold is computed again in the backward pass instead of being kept.

For volumes that do not fit otherwise. Losses, weights and running statistics are bitwise those of a training without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_activations(net: nn.Module) -> None:
    """Let every block of `net` forget its intermediate results after the forward pass, for good."""
    for block in blocks(net):
        block.forward = _recomputed(block, block.forward)


def blocks(net: nn.Module) -> list[nn.Module]:
    """The modules that hold layers and nothing deeper, such as a convolution with its norm and its activation."""
    return [module for module in net.modules() if _holds_layers_only(module)]


def _holds_layers_only(module: nn.Module) -> bool:
    layers = list(module.children())
    return bool(layers) and not any(list(layer.children()) for layer in layers)


def _recomputed(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _buffers_kept(block)

    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    return call


@contextmanager
def _buffers_kept(block: nn.Module) -> Iterator[None]:
    """Batch norm's running statistics have seen this batch already."""
    before = [buffer.clone() for buffer in block.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(block.buffers(), before, strict=True):
                buffer.copy_(value)
