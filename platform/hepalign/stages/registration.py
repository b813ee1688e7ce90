"""CT to CT: the velocity network, unsupervised as in the paper, with dense truth and labels where there are any."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from hepalign.cases.case import Split
from hepalign.cases.cohort import Cohort
from hepalign.cases.registration_data import Judge, RegistrationData, registration_loader, validated_by
from hepalign.inference.coarse import coarse_start, eroded
from hepalign.losses.regularisation import bending_energy, diffusion
from hepalign.losses.similarity import MIND_CHANNELS, lncc_loss, weighted_mean
from hepalign.nets.checkpoint import unwrap
from hepalign.nets.precision import autocast, channels_last
from hepalign.nets.regnet import RegNet, RegNetConfig, network_inputs, upsample_field
from hepalign.stages.pictures import montage
from hepalign.stages.stage import Batch, Update
from hepalign.transform.velocity import integrate
from hepalign.transform.warp import warp_tensor


class RegistrationLosses(BaseModel):
    """Weights of the loss's terms; 0 leaves one out.

    Args:
        mind: mean squared MIND-SSC difference at half resolution, outside hole and borders.
        lncc: local normalised cross-correlation there (the paper's S); blind to no contrast change.
        diffusion: squared slope of the network's velocity.
        bending: its bending energy.
        endpoint: end-point error in mm where the truth is known.
        liver_share: how much more the liver weighs in the end-point error than the rest of the body.
        dice: soft Dice loss of the warped liver where both livers are known.
    """

    model_config = ConfigDict(extra="forbid")

    mind: float = Field(default=20.0, ge=0)
    lncc: float = Field(default=0.0, ge=0)
    diffusion: float = Field(default=0.1, ge=0)
    bending: float = Field(default=0.0, ge=0)
    endpoint: float = Field(default=0.5, ge=0)
    liver_share: float = Field(default=2.0, ge=0)
    dice: float = Field(default=0.3, ge=0)


class RegistrationOptimizer(BaseModel):
    """AdamW with a cosine decay to a hundredth over the run.

    Args:
        rate: learning rate at the start.
        weight_decay: decoupled.
    """

    model_config = ConfigDict(extra="forbid")

    rate: float = Field(default=5e-4, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)


class RegistrationConfig(BaseModel):
    """Everything the registration stage is made from."""

    model_config = ConfigDict(extra="forbid")

    data: RegistrationData = RegistrationData()
    net: RegNetConfig = RegNetConfig()
    losses: RegistrationLosses = RegistrationLosses()
    optimizer: RegistrationOptimizer = RegistrationOptimizer()
    seed: int = 0


@dataclass(frozen=True)
class _Predicted:
    """One batch at half resolution, in voxels of that.

    Args:
        velocity: the network's [B,3,d,h,w].
        displacement: of coarse start and network together.
        features: `network_inputs` of the images as they came.
        weight: [B,1,d,h,w], 1 where they can be compared.
    """

    velocity: Tensor
    displacement: Tensor
    features: Tensor
    weight: Tensor


SELECTION: dict[Judge, tuple[str, bool]] = {
    "truth": ("liver_error_mm", True),
    "livers": ("liver_dice", False),
    "images": ("mind", True),
}


class RegistrationStage:
    """One network, one optimiser; chosen by the end-point error in the liver in mm, or by what the cohort knows."""

    name = "registration"

    def __init__(self, config: RegistrationConfig, cohorts: Sequence[Cohort], device: torch.device) -> None:
        self.config, self.cohorts, self.device = config, cohorts, device
        self.selection = SELECTION[validated_by(cohorts, config.data)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            net = RegNet(config.net)
        self._net: nn.Module = channels_last(net.to(device))
        optimizer = config.optimizer
        self._optimizer = AdamW(self._net.parameters(), lr=optimizer.rate, weight_decay=optimizer.weight_decay)

    def nets(self) -> dict[str, nn.Module]:
        """The registration network."""
        return {"net": self._net}

    def adopt(self, nets: Mapping[str, nn.Module]) -> None:
        """Use this wrapped module from now on."""
        self._net = nets["net"]

    def export(self) -> tuple[nn.Module, BaseModel]:
        """The registration network."""
        return unwrap(self._net), self.config.net

    def optimizers(self) -> dict[str, Optimizer]:
        """One AdamW."""
        return {"net": self._optimizer}

    def state(self) -> dict[str, object]:
        """Nothing beyond network and optimiser."""
        return {}

    def load_state(self, state: Mapping[str, object]) -> None:
        """Nothing to restore."""

    def loader(self, split: Split, *, epoch: int, rank: int, world_size: int) -> Iterable[Batch]:
        """Pairs after their affine start, with truth and labels where they are known."""
        config = self.config
        return registration_loader(
            self.cohorts, config.data, split, seed=config.seed, epoch=epoch, rank=rank, world_size=world_size
        )

    def begin_epoch(self, epoch: int, total: int) -> None:
        """The cosine's rate for this epoch."""
        share = 0.505 + 0.495 * float(np.cos(np.pi * epoch / max(total, 1)))
        for group in self._optimizer.param_groups:
            group["lr"] = self.config.optimizer.rate * share

    def updates(self, batch: Batch) -> Iterator[Update]:
        """One step on all terms that this batch can give."""
        terms = self._terms(batch, self._predicted(self._net, batch))
        weights = self.config.losses.model_dump()
        loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        yield Update(self._optimizer, loss, {name: term.detach() for name, term in terms.items()})

    @torch.no_grad()
    def score(self, batch: Batch) -> dict[str, float]:
        """MIND-SSC difference and, where known, end-point error (mm) and the liver's Dice; none knows loss weights."""
        mask, liver, moving_liver, truth = self._images(batch, "fixed_mask", "fixed_liver", "moving_liver", "field")
        predicted = self._predicted(unwrap(self._net), batch)
        field = upsample_field(predicted.displacement)
        scores = {"mind": float(_mind(predicted))}
        known = self._flag(batch, "has_field")
        if known.any():
            error_mm = (field - truth).norm(dim=1, keepdim=True) * self.config.data.spacing_mm
            inside = liver if float((liver * known).sum()) > 0 else mask
            scores["liver_error_mm"] = float(weighted_mean(error_mm, inside * known))
            scores["body_error_mm"] = float(weighted_mean(error_mm, mask * known))
        if self._flag(batch, "has_liver").any():
            overlap = (warp_tensor(moving_liver, field) > 0.5).float()
            scores["liver_dice"] = float(2 * (overlap * liver).sum() / (overlap.sum() + liver.sum()).clamp_min(1))
        return scores

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, NDArray[np.uint8]]:
        """The moving image before and after, and the fixed one."""
        moving, fixed = self._images(batch, "moving", "fixed")
        warped = warp_tensor(moving, upsample_field(self._predicted(unwrap(self._net), batch).displacement))
        return {"moving_warped_fixed": montage([moving, warped, fixed])}

    def _predicted(self, net: nn.Module, batch: Batch) -> _Predicted:
        """The coarse start, and what the network makes of what that has left over."""
        moving, fixed, mask = self._images(batch, "moving", "fixed", "fixed_mask")
        features, weight = network_inputs(moving, fixed), -F.max_pool3d(-mask, 2)
        # made in inference mode: only its copy may enter a differentiated computation
        start = coarse_start(features[:, :MIND_CHANNELS], weight).clone()
        seen = torch.cat([warp_tensor(features[: len(moving)], start), features[len(moving) :]])
        with autocast(self.device):
            velocity = net(seen)
        added = integrate(velocity.float())
        return _Predicted(velocity.float(), added + warp_tensor(start, added), features, eroded(weight))

    def _terms(self, batch: Batch, predicted: _Predicted) -> dict[str, Tensor]:
        """The named, unweighted terms, in float32 at half resolution."""
        weights, displacement = self.config.losses, predicted.displacement
        mask, liver, moving_liver, truth = self._images(batch, "fixed_mask", "fixed_liver", "moving_liver", "field")
        moving, fixed = predicted.features.chunk(2)
        terms: dict[str, Tensor] = {}
        if weights.mind:
            terms["mind"] = _mind(predicted)
        if weights.lncc:
            warped = warp_tensor(moving[:, MIND_CHANNELS:], displacement)
            terms["lncc"] = 1 + lncc_loss(warped, fixed[:, MIND_CHANNELS:], 7, predicted.weight)
        if weights.diffusion:
            terms["diffusion"] = diffusion(predicted.velocity)
        if weights.bending:
            terms["bending"] = bending_energy(predicted.velocity)
        if weights.endpoint:
            importance = (mask + weights.liver_share * liver) * self._flag(batch, "has_field")
            terms["endpoint"] = self._endpoint(displacement, truth, importance)
        if weights.dice:
            known = self._flag(batch, "has_liver")
            carried = warp_tensor(F.avg_pool3d(moving_liver, 2), displacement) * known
            target = F.avg_pool3d(liver, 2) * known
            terms["dice"] = 1 - (2 * (carried * target).sum() + 1) / (carried.sum() + target.sum() + 1)
        return terms

    def _endpoint(self, displacement: Tensor, truth: Tensor, importance: Tensor) -> Tensor:
        """Weighted mean end-point error in mm of a half-resolution field."""
        truth_half = F.avg_pool3d(truth, 2) / 2
        error = ((displacement - truth_half).square().sum(1, keepdim=True) + 1e-4).sqrt()
        return weighted_mean(error, F.avg_pool3d(importance, 2)) * (2 * self.config.data.spacing_mm)

    def _flag(self, batch: Batch, name: str) -> Tensor:
        return cast("Tensor", batch[name]).to(self.device).float().view(-1, 1, 1, 1, 1)

    def _images(self, batch: Batch, *names: str) -> list[Tensor]:
        return [cast("Tensor", batch[name]).to(self.device, non_blocking=True).float() for name in names]


def _mind(predicted: _Predicted) -> Tensor:
    """The measure that refinement goes on with: the features themselves are warped."""
    moving, fixed = (features[:, :MIND_CHANNELS] for features in predicted.features.chunk(2))
    return weighted_mean((warp_tensor(moving, predicted.displacement) - fixed).square(), predicted.weight)
