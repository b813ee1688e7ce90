"""The gradients of one batch of a stage, in one process or averaged by DDP over two."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from hepalign.cases.inpainting_data import InpaintingData
from hepalign.nets.checkpoint import unwrap
from hepalign.nets.cyclegan import DiscriminatorConfig, GeneratorConfig
from hepalign.nets.unet import InpaintingNetConfig
from hepalign.stages.inpainting import InpaintingConfig, InpaintingStage
from hepalign.stages.synthesis import SynthesisConfig, SynthesisStage

SHAPE = (2, 1, 16, 16, 16)


def synthesis_stage() -> SynthesisStage:
    net, discriminator = GeneratorConfig(width=2, blocks=1), DiscriminatorConfig(width=2)
    config = SynthesisConfig(net=net, discriminator=discriminator, buffer=0)
    return SynthesisStage(config, [], torch.device("cpu"))


def inpainting_stage(norm: str = "none") -> InpaintingStage:
    # Batch norm takes a rank's own statistics, so only a network without it has equal gradients.
    net = InpaintingNetConfig(widths=(4, 4), head_width=2, norm=norm)
    config = InpaintingConfig(data=InpaintingData(), net=net, extractor_slices=1)
    return InpaintingStage(config, [], torch.device("cpu"))


def synthesis_batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(5)
    mr, ct = (torch.rand(SHAPE, generator=generator) * 2 - 1 for _ in range(2))
    return {"mr": mr, "ct": ct, "case_id": ["a", "b"]}


def inpainting_batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(6)
    image = torch.rand(SHAPE, generator=generator) * 2 - 1
    mask = torch.ones(SHAPE)
    mask[..., 5:10, 6:11, 4:9] = 0
    body = torch.ones(SHAPE)
    return {"image": image, "mask": mask, "prior": image * 0.8 + 0.1, "body": body, "case_id": ["a", "b"]}


def gradients(stage: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
    """What each optimiser's backward pass leaves in the parameters it owns; nothing is stepped."""
    names = {id(p): f"{net}.{name}" for net, m in stage.nets().items() for name, p in unwrap(m).named_parameters()}
    found = {}
    for update in stage.updates(batch):
        update.optimizer.zero_grad()
        update.loss.backward()
        for group in update.optimizer.param_groups:
            found |= {names[id(p)]: p.grad.detach().clone() for p in group["params"]}
    return found


def two_workers() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Synthesis's and inpainting's gradients under DDP, a sample a rank, over gloo."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_work, args=(folder,), nprocs=2)
        found = torch.load(Path(folder) / "gradients.pt")
    return found["synthesis"], found["inpainting"]


def _work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    for name, stage, batch in (
        ("synthesis", synthesis_stage(), synthesis_batch()),
        ("inpainting", inpainting_stage(), inpainting_batch()),
    ):
        stage.adopt({key: DistributedDataParallel(net) for key, net in stage.nets().items()})
        own = {key: value[rank : rank + 1] for key, value in batch.items()}
        found[name] = gradients(stage, own)
    if rank == 0:
        torch.save(found, Path(folder) / "gradients.pt")
    dist.destroy_process_group()
