"""Least-squares adversarial loss (Mao et al. 2017) and the buffer of past images (Shrivastava et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hepalign.nets.checkpoint import unwrap


def least_squares(judgement: Tensor, *, real: bool) -> Tensor:
    """The mean squared distance of a discriminator's judgement to 1 (real) or 0 (fake), float32."""
    return (judgement.float() - float(real)).square().mean()


def judge_frozen(discriminator: nn.Module, image: Tensor) -> Tensor:
    """The discriminator's judgement with gradients to the image only.

    The discriminator is called without DDP's wrapper and with detached weights, so that a generator's backward pass
    neither touches its gradients nor starts DDP's reduction.
    """
    inner = unwrap(discriminator)
    weights = {name: value.detach() for name, value in inner.named_parameters()}
    return cast("Tensor", functional_call(inner, weights, (image,)))


class ImageBuffer:
    """Half of the fakes a discriminator sees are drawn from the last `size` ones, so that it does not forget.

    Its whole state (images and random numbers) is checkpointed, for sample-exact resumption.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self._images: list[Tensor] = []
        self._generator = torch.Generator().manual_seed(seed)

    def exchange(self, fakes: Tensor) -> Tensor:
        """For each fake of the batch either itself or, with odds of one half once full, an older one it replaces."""
        given = []
        for fake in fakes.detach().unbind(0):
            if len(self._images) < self.size:
                self._images.append(fake.clone())
                given.append(fake)
            elif self.size and torch.rand((), generator=self._generator) < 0.5:
                index = int(torch.randint(self.size, (), generator=self._generator))
                given.append(self._images[index].to(fake.device))
                self._images[index] = fake.clone()
            else:
                given.append(fake)
        return torch.stack(given)

    def state(self) -> dict[str, object]:
        """Images and the generator's state, all tensors."""
        return {"images": [image.cpu() for image in self._images], "generator": self._generator.get_state()}

    def load_state(self, state: Mapping[str, object]) -> None:
        """Go on from what `state` gave."""
        self._images = list(cast("list[Tensor]", state["images"]))
        self._generator.set_state(cast("Tensor", state["generator"]))
