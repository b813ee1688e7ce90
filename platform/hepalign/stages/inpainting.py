"""CT with the probe to CT without: partial convolutions and the paper's five losses (Wei et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from hepalign.cases.case import Split
from hepalign.cases.cohort import Cohort
from hepalign.cases.inpainting_data import InpaintingData, inpainting_loader
from hepalign.losses.inpainting import InpaintingWeights, compose, inpainting_terms
from hepalign.nets.checkpoint import build_net, unwrap
from hepalign.nets.features import HedVgg16, sample_slices
from hepalign.nets.precision import autocast, channels_last
from hepalign.nets.unet import InpaintingNetConfig
from hepalign.stages.pictures import montage
from hepalign.stages.stage import Batch, Update

# A prior that was dropped is this constant (cases/inpainting_data.py).
_NO_PRIOR_UNIT = -1.0


class InpaintingOptimizer(BaseModel):
    """Adam in two phases: the second at a lower rate with the encoder's batch norm frozen (Liu et al., section 4).

    Args:
        rates: learning rate of each phase.
        second_phase: share of the epochs after which it begins.
    """

    model_config = ConfigDict(extra="forbid")

    rates: tuple[float, float] = (2e-4, 5e-5)
    second_phase: float = Field(default=0.7, ge=0, le=1)


class InpaintingConfig(BaseModel):
    """Everything the inpainting stage is made from; `net`'s spacing and window are taken from `data`.

    Args:
        kind: partial convolutions (the paper's), plain or gated ones with contextual attention.
        extractor_slices: slices of each patch that the perceptual and style losses look at.
    """

    model_config = ConfigDict(extra="forbid")

    data: InpaintingData = InpaintingData()
    kind: Literal["pconv-unet", "conv-unet", "gated-unet"] = "pconv-unet"
    net: InpaintingNetConfig = InpaintingNetConfig()
    losses: InpaintingWeights = InpaintingWeights()
    extractor_slices: int = Field(default=3, ge=1)
    optimizer: InpaintingOptimizer = InpaintingOptimizer()
    seed: int = 0


class InpaintingStage:
    """One network, one optimiser; chosen by the error in the hole in HU."""

    name = "inpainting"
    selection = ("hole_l1_hu", True)

    def __init__(self, config: InpaintingConfig, cohorts: Sequence[Cohort], device: torch.device) -> None:
        self.extractor = HedVgg16().to(device).eval()
        taken = {
            "spacing_mm": config.data.spacing_mm,
            "window_hu": config.data.window_hu,
            "extractor": self.extractor.name,
        }
        self.config = config.model_copy(update={"net": config.net.model_copy(update=taken)})
        self.cohorts, self.device = cohorts, device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            net = build_net(config.kind, self.config.net.model_dump())
        self._net = channels_last(net.to(device))
        frozen_later = [parameter for norm in _encoder_norms(net) for parameter in norm.parameters()]
        known = {id(parameter) for parameter in frozen_later}
        others = [parameter for parameter in net.parameters() if id(parameter) not in known]
        self._optimizer = Adam([{"params": others}, {"params": frozen_later}], lr=config.optimizer.rates[0])
        self._generator = torch.Generator().manual_seed(config.seed)

    def nets(self) -> dict[str, nn.Module]:
        """The inpainting network."""
        return {"net": self._net}

    def adopt(self, nets: Mapping[str, nn.Module]) -> None:
        """Use this wrapped module from now on."""
        self._net = nets["net"]

    def export(self) -> tuple[nn.Module, BaseModel]:
        """The inpainting network."""
        return unwrap(self._net), self.config.net

    def optimizers(self) -> dict[str, Optimizer]:
        """One Adam; its second group is the encoder's batch norm."""
        return {"net": self._optimizer}

    def state(self) -> dict[str, object]:
        """The random numbers of this rank, from which slices are drawn."""
        return {"generator": self._generator.get_state()}

    def load_state(self, state: Mapping[str, object]) -> None:
        """Go on from what `state` gave."""
        self._generator.set_state(cast("Tensor", state["generator"]))

    def loader(self, split: Split, *, epoch: int, rank: int, world_size: int) -> Iterable[Batch]:
        """Patches with holes and priors."""
        return inpainting_loader(
            self.cohorts,
            self.config.data,
            split,
            seed=self.config.seed,
            epoch=epoch,
            rank=rank,
            world_size=world_size,
        )

    def begin_epoch(self, epoch: int, total: int) -> None:
        """The phase of this epoch: its rate, and whether the encoder's batch norm still learns."""
        optimizer = self.config.optimizer
        second = epoch >= optimizer.second_phase * total
        rate = optimizer.rates[int(second)]
        learned, norms = self._optimizer.param_groups
        learned["lr"], norms["lr"] = rate, 0.0 if second else rate
        for norm in _encoder_norms(unwrap(self._net)):
            norm.train(not second)

    def updates(self, batch: Batch) -> Iterator[Update]:
        """One step on the five losses."""
        image, mask = self._images(batch, "image", "mask")
        output = self._predict(self._net, batch)
        terms = inpainting_terms(output, image, mask, self.extractor, self._slices(1 - mask))
        detached = {name: term.detach() for name, term in terms.items()}
        yield Update(self._optimizer, self.config.losses.total(terms), detached)

    @torch.no_grad()
    def score(self, batch: Batch) -> dict[str, float]:
        """Errors inside hole and body, in HU; they know no loss weights."""
        image, mask, body = self._images(batch, "image", "mask", "body")
        output = self._predict(unwrap(self._net), batch).clamp(-1, 1)
        low, high = self.config.data.window_hu
        error_hu = (output - image) * ((high - low) / 2)
        inside = (1 - mask) * body
        voxels = inside.sum().clamp_min(1.0)
        mean_square = (error_hu.square() * inside).sum() / voxels
        return {
            "hole_l1_hu": float((error_hu.abs() * inside).sum() / voxels),
            "hole_rmse_hu": float(mean_square.sqrt()),
            "hole_psnr_db": float(10 * torch.log10((high - low) ** 2 / mean_square.clamp_min(1e-6))),
        }

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, NDArray[np.uint8]]:
        """The image with its hole, filled, and as it truly is, and the prior."""
        image, mask, prior = self._images(batch, "image", "mask", "prior")
        output = self._predict(unwrap(self._net), batch)
        shown = [image * mask - (1 - mask), compose(output, image, mask), image, prior]
        return {"hole_filled_truth_prior": montage(shown)}

    def _predict(self, net: nn.Module, batch: Batch) -> Tensor:
        image, mask, prior = self._images(batch, "image", "mask", "prior")
        known = (prior > _NO_PRIOR_UNIT).flatten(1).any(1).float().view(-1, 1, 1, 1, 1).expand_as(mask)
        with autocast(self.device):
            output: Tensor
            # What the image shows in the hole is the truth: the network never gets it.
            output, _ = net(image * mask, mask, prior, known) if self.config.net.prior else net(image * mask, mask)
        return output

    def _slices(self, hole: Tensor) -> Callable[[list[Tensor]], list[Tensor]]:
        return lambda volumes: sample_slices(volumes, hole, self.config.extractor_slices, self._generator)

    def _images(self, batch: Batch, *names: str) -> list[Tensor]:
        return [cast("Tensor", batch[name]).to(self.device, non_blocking=True) for name in names]


def _encoder_norms(net: nn.Module) -> list[nn.Module]:
    """The batch norms of the encoder, and of the prior's."""
    encoders = [part for name, part in net.named_children() if name in ("encoder", "prior_encoder")]
    return [module for part in encoders for module in part.modules() if isinstance(module, nn.BatchNorm3d)]
