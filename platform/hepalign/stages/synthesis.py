"""MR to CT: a CycleGAN held to the input's edges by mutual information (Wei et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from hepalign.cases.case import Split
from hepalign.cases.cohort import Cohort
from hepalign.cases.synthesis_data import SynthesisData, synthesis_loader
from hepalign.losses.adversarial import ImageBuffer, judge_frozen, least_squares
from hepalign.losses.mutual_information import mutual_information, subsample
from hepalign.losses.similarity import mind_loss
from hepalign.nets.checkpoint import unwrap
from hepalign.nets.cyclegan import DiscriminatorConfig, GeneratorConfig, PatchDiscriminator, ResNetGenerator
from hepalign.nets.precision import autocast, channels_last
from hepalign.stages.pictures import montage
from hepalign.stages.stage import Batch, Update


class SynthesisLosses(BaseModel):
    """Weights of the generators' losses; the adversarial terms have weight 1.

    Args:
        cycle: L1 between an image and itself after both generators.
        identity: L1 between a CT and its "synthesis" from CT, relative to `cycle` as in Zhu et al.'s code.
        mutual_information: of the input MR and the synthetic CT, maximised.
        symmetric: also of the real CT and the synthetic MR.
        structure: MIND-SSC's mean square difference between the input MR and the synthetic CT (Yang et al. 2018,
            arXiv 1809.04536).
        paired: L1 between the synthetic CT and the true one, in the samples that have it (phantoms, aligned scans).
            0 is the unpaired CycleGAN.
        bins: soft bins along either intensity axis.
        voxels: voxels drawn from each patch for it.
    """

    model_config = ConfigDict(extra="forbid")

    cycle: float = Field(default=10.0, ge=0)
    identity: float = Field(default=0.5, ge=0)
    mutual_information: float = Field(default=1.0, ge=0)
    symmetric: bool = False
    structure: float = Field(default=0.0, ge=0)
    paired: float = Field(default=0.0, ge=0)
    bins: int = Field(default=32, ge=4)
    voxels: int = Field(default=20000, ge=100)

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The generators' weighted sum; terms that are not there do not count."""
        each = {
            "cycle": self.cycle,
            "identity": self.cycle * self.identity,
            "mutual_information": -self.mutual_information,
            "structure": self.structure,
            "paired": self.paired,
        }
        return torch.stack([each.get(name, 1.0) * term for name, term in terms.items()]).sum()


class SynthesisOptimizer(BaseModel):
    """Adam as in the CycleGAN paper: a constant rate, then linearly to 0 from `decay_from` (a share of the epochs).

    An adversarial training circles around its solution, so what is judged and released is the running mean of the
    MR to CT generator's weights (Yazıcı et al. 2019, arXiv 1806.04498), each step weighing 1 - `average`.

    Where pairs are known, the first `paired_first` (a share of the epochs) may go to them alone: one generator and
    one pass a step, four times as many steps, and the adversarial game starts from images that are nearly right.
    """

    model_config = ConfigDict(extra="forbid")

    generator_rate: float = Field(default=2e-4, gt=0)
    discriminator_rate: float = Field(default=2e-4, gt=0)
    beta1: float = Field(default=0.5, ge=0, lt=1)
    average: float = Field(default=0.98, ge=0, lt=1)
    decay_from: float = Field(default=0.5, ge=0, le=1)
    paired_first: float = Field(default=0.0, ge=0, le=1)


class SynthesisConfig(BaseModel):
    """Everything the synthesis stage is made from; `net`'s spacing, patch and window are taken from `data`."""

    model_config = ConfigDict(extra="forbid")

    data: SynthesisData = SynthesisData()
    net: GeneratorConfig = GeneratorConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    losses: SynthesisLosses = SynthesisLosses()
    optimizer: SynthesisOptimizer = SynthesisOptimizer()
    buffer: int = Field(default=50, ge=0)
    seed: int = 0


class SynthesisStage:
    """The CycleGAN: two generators (`to_ct` is released, `to_mr`) and a discriminator for each modality."""

    name = "synthesis"

    def __init__(self, config: SynthesisConfig, cohorts: Sequence[Cohort], device: torch.device) -> None:
        data = config.data
        taken = {"spacing_mm": data.spacing_mm, "patch": data.patch, "window_hu": data.window_hu}
        self.config = config.model_copy(update={"net": config.net.model_copy(update=taken)})
        self.cohorts, self.device = cohorts, device
        paired = any(case.has("pmr_true_ct") for cohort in cohorts for case in cohort.cases("val"))
        self.selection = ("mae_hu" if paired else "edge_drift", True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self._nets: dict[str, nn.Module] = {
                "to_ct": ResNetGenerator(self.config.net),
                "to_mr": ResNetGenerator(self.config.net),
                "judge_ct": PatchDiscriminator(config.discriminator),
                "judge_mr": PatchDiscriminator(config.discriminator),
            }
        for net in self._nets.values():
            channels_last(net.to(device))
        self._mean = deepcopy(self._nets["to_ct"]).eval().requires_grad_(False)
        self._averaged = 0
        self._paired_only = False
        betas, rates = (config.optimizer.beta1, 0.999), config.optimizer
        self._optimizers = {
            "generators": Adam(self._parameters("to_ct", "to_mr"), rates.generator_rate, betas),
            "discriminators": Adam(self._parameters("judge_ct", "judge_mr"), rates.discriminator_rate, betas),
        }
        self._rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in self._optimizers.items()}
        self._buffers = {name: ImageBuffer(config.buffer, config.seed + n) for n, name in enumerate(("ct", "mr"))}
        self._generator = torch.Generator().manual_seed(config.seed)

    def nets(self) -> dict[str, nn.Module]:
        """Both generators and both discriminators."""
        return dict(self._nets)

    def adopt(self, nets: Mapping[str, nn.Module]) -> None:
        """Use these wrapped modules from now on."""
        self._nets = dict(nets)

    def export(self) -> tuple[nn.Module, BaseModel]:
        """The MR to CT generator with its mean weights."""
        return self._mean, self.config.net

    def optimizers(self) -> dict[str, Optimizer]:
        """One for both generators, one for both discriminators."""
        return dict(self._optimizers)

    def state(self) -> dict[str, object]:
        """The image buffers and the random numbers of this rank, and the mean generator."""
        return {
            "buffers": {name: buffer.state() for name, buffer in self._buffers.items()},
            "generator": self._generator.get_state(),
            "mean": {name: value.cpu().clone() for name, value in self._mean.state_dict().items()},
            "averaged": self._averaged,
        }

    def load_state(self, state: Mapping[str, object]) -> None:
        """Go on from what `state` gave."""
        for name, buffer in cast("Mapping[str, Mapping[str, object]]", state["buffers"]).items():
            self._buffers[name].load_state(buffer)
        self._generator.set_state(cast("Tensor", state["generator"]))
        self._mean.load_state_dict(cast("Mapping[str, Tensor]", state["mean"]))
        self._averaged = cast("int", state["averaged"])

    def loader(self, split: Split, *, epoch: int, rank: int, world_size: int) -> Iterable[Batch]:
        """Patches of MR and CT."""
        return synthesis_loader(
            self.cohorts,
            self.config.data,
            split,
            seed=self.config.seed,
            epoch=epoch,
            rank=rank,
            world_size=world_size,
        )

    def begin_epoch(self, epoch: int, total: int) -> None:
        """The learning rates of this epoch."""
        self._paired_only = epoch < self.config.optimizer.paired_first * total
        start = self.config.optimizer.decay_from * total
        share = 1.0 if epoch < start else (total - epoch) / max(total - start, 1.0)
        for name, optimizer in self._optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self._rates[name] * min(share, 1.0)

    def updates(self, batch: Batch) -> Iterator[Update]:
        """The generators' step, then the discriminators'."""
        if self._paired_only:
            yield self._paired_update(batch)
            self._average()
            return
        mr, ct = self._images(batch, "mr", "ct")
        weights = self.config.losses
        with autocast(self.device):
            fake_ct, same_ct = self._generate("to_ct", mr, ct)
            fake_mr, same_mr = self._generate("to_mr", ct, mr)
            cycled_mr, cycled_ct = self._nets["to_mr"](fake_ct), self._nets["to_ct"](fake_mr)
            judged_ct = judge_frozen(self._nets["judge_ct"], fake_ct)
            judged_mr = judge_frozen(self._nets["judge_mr"], fake_mr)
        terms = {
            "adversarial_ct": least_squares(judged_ct, real=True),
            "adversarial_mr": least_squares(judged_mr, real=True),
            "cycle": F.l1_loss(cycled_mr, mr) + F.l1_loss(cycled_ct, ct),
            "mutual_information": self._mutual_information(mr, fake_ct, ct, fake_mr),
        }
        if same_ct is not None and same_mr is not None:
            terms["identity"] = F.l1_loss(same_ct, ct) + F.l1_loss(same_mr, mr)
        if weights.structure:
            terms["structure"] = mind_loss(fake_ct.float(), mr)
        if weights.paired:
            terms["paired"] = self._paired(fake_ct, batch)
        loss = weights.total(terms)
        yield Update(self._optimizers["generators"], loss, _detached(terms))
        self._average()

        with autocast(self.device):
            of_ct = self._judge("judge_ct", ct, self._buffers["ct"].exchange(fake_ct))
            of_mr = self._judge("judge_mr", mr, self._buffers["mr"].exchange(fake_mr))
        terms = {"discriminator_ct": of_ct, "discriminator_mr": of_mr}
        yield Update(self._optimizers["discriminators"], of_ct + of_mr, _detached(terms))

    @torch.no_grad()
    def score(self, batch: Batch) -> dict[str, float]:
        """HU errors in the body where the true CT is known; always edge drift and mutual information with the MR."""
        (mr,) = self._images(batch, "mr")
        fake = self._synthesise(mr)
        scores = {"edge_drift": edge_drift(mr, fake), "mutual_information": float(mutual_information(mr, fake).mean())}
        if "true_ct" in batch:
            truth, body = self._images(batch, "true_ct", "body")
            low, high = self.config.data.window_hu
            error_hu = (fake - truth) * ((high - low) / 2)
            voxels = body.sum().clamp_min(1.0)
            scores["mae_hu"] = float((error_hu.abs() * body).sum() / voxels)
            mean_square = float((error_hu.square() * body).sum() / voxels)
            scores["psnr_db"] = float(10 * np.log10((high - low) ** 2 / max(mean_square, 1e-6)))
        return scores

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, NDArray[np.uint8]]:
        """MR, synthetic CT and the CT of the batch, side by side."""
        mr, ct = self._images(batch, "mr", "ct")
        return {"mr_sct_ct": montage([mr, self._synthesise(mr), ct])}

    def _paired_update(self, batch: Batch) -> Update:
        """A step of the MR to CT generator on the pairs alone."""
        (mr,) = self._images(batch, "mr")
        with autocast(self.device):
            fake_ct = self._nets["to_ct"](mr)
        terms = {"paired": self._paired(fake_ct, batch)}
        return Update(self._optimizers["generators"], self.config.losses.paired * terms["paired"], _detached(terms))

    def _paired(self, fake_ct: Tensor, batch: Batch) -> Tensor:
        true_ct, known = self._images(batch, "true_ct", "has_true_ct")
        return ((fake_ct - true_ct).abs().mean(dim=(1, 2, 3, 4)) * known).mean()

    def _generate(self, name: str, image: Tensor, other: Tensor) -> tuple[Tensor, Tensor | None]:
        """The image translated and, where identity counts, an image that already is of the generator's modality."""
        if not self.config.losses.identity:
            return self._nets[name](image), None
        # Instance norm treats every sample alone, so both share one pass.
        translated, same = self._nets[name](torch.cat([image, other])).chunk(2)
        return translated, same

    def _synthesise(self, mr: Tensor) -> Tensor:
        with autocast(self.device):
            fake: Tensor = self._mean(mr)
        return fake

    @torch.no_grad()
    def _average(self) -> None:
        """Take the step just made into the mean; the first ones weigh more, or the start would linger."""
        self._averaged += 1
        share = max(1 - self.config.optimizer.average, 1 / self._averaged)
        now = unwrap(self._nets["to_ct"]).parameters()
        for mean, value in zip(self._mean.parameters(), now, strict=True):
            mean.lerp_(value, share)

    def _judge(self, name: str, real: Tensor, fake: Tensor) -> Tensor:
        of_real, of_fake = self._nets[name](torch.cat([real, fake])).chunk(2)
        return (least_squares(of_real, real=True) + least_squares(of_fake, real=False)) / 2

    def _mutual_information(self, mr: Tensor, fake_ct: Tensor, ct: Tensor, fake_mr: Tensor) -> Tensor:
        weights = self.config.losses
        images = subsample([mr, fake_ct, ct, fake_mr], weights.voxels, self._generator)
        found = mutual_information(images[0], images[1], bins=weights.bins).mean()
        if weights.symmetric:
            found = found + mutual_information(images[2], images[3], bins=weights.bins).mean()
        return found

    def _images(self, batch: Batch, *names: str) -> list[Tensor]:
        return [cast("Tensor", batch[name]).to(self.device, non_blocking=True) for name in names]

    def _parameters(self, *names: str) -> list[nn.Parameter]:
        return [parameter for name in names for parameter in self._nets[name].parameters()]


def edge_drift(source: Tensor, result: Tensor) -> float:
    """How far the result's edges are from the source's: 1 - mean cos^2 of their gradients' angle, 0 to 1.

    The normalised gradient fields of Haber and Modersitzki (2006), weighted by the source's gradient so that flat
    noise does not count; contrast may be inverted. [B, 1, D, H, W] each.
    """
    first, second = _gradients(source.float()), _gradients(result.float())
    strength, other = first.square().sum(1), second.square().sum(1)
    aligned = (first * second).sum(1).square()
    # The added term keeps flat regions, where a gradient has no direction, from counting.
    cosine = aligned / (strength * other + 1e-3 * strength.mean() * other.mean() + 1e-12)
    return float(1 - (cosine * strength).sum() / strength.sum().clamp_min(1e-8))


def _gradients(image: Tensor) -> Tensor:
    return torch.cat(torch.gradient(image, dim=(2, 3, 4)), dim=1)


def _detached(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: term.detach() for name, term in terms.items()}
