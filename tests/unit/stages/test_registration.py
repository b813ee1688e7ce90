from __future__ import annotations

import pytest
import torch

from hepalign.nets.regnet import RegNetConfig
from hepalign.stages import registration
from hepalign.stages.registration import RegistrationConfig, RegistrationOptimizer, RegistrationStage
from hepalign.stages.stage import Batch
from hepalign.transform.warp import warp_tensor


def batch(shape: tuple[int, int, int] = (32, 32, 16), *, truth: bool = True, liver: bool = True) -> Batch:
    """A textured image and itself shifted by two voxels along the first axis."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 1, *shape, generator=generator)
    image = torch.nn.functional.avg_pool3d(noise, 5, 1, 2, count_include_pad=False)
    image = 0.4 * (image - image.mean()) / image.std()
    field = torch.zeros(1, 3, *shape)
    field[:, 0] = 2.0
    mask = torch.zeros(1, 1, *shape)
    mask[..., 8:24, 8:24, 4:12] = 1
    return {
        "moving": image,
        "fixed": warp_tensor(image, field),
        "fixed_mask": torch.ones(1, 1, *shape),
        "moving_liver": mask,
        "fixed_liver": warp_tensor(mask, field),
        "has_liver": torch.tensor([liver]),
        "field": field if truth else torch.zeros_like(field),
        "has_field": torch.tensor([truth]),
        "case_id": ["made-up"],
    }


def stage(seed: int = 0) -> RegistrationStage:
    net = RegNetConfig(encoder_channels=4, level_channels=8, coarse_reach=1)
    config = RegistrationConfig(net=net, optimizer=RegistrationOptimizer(rate=3e-3), seed=seed)
    return RegistrationStage(config, [], torch.device("cpu"))


def step(one: RegistrationStage, data: Batch) -> dict[str, float]:
    (update,) = one.updates(data)
    update.optimizer.zero_grad()
    update.loss.backward()
    update.optimizer.step()
    return {"loss": float(update.loss.detach()), **{name: float(term) for name, term in update.terms.items()}}


def test_a_few_steps_lower_the_end_point_error() -> None:
    one, data = stage(), batch((32, 32, 32))
    before = one.score(data)["liver_error_mm"]
    # 6 mm were applied; the coarse start alone, without any training, finds more than half
    assert before < 3.0
    for _ in range(40):
        step(one, data)
    assert one.score(data)["liver_error_mm"] < 0.7 * before


def test_the_same_seed_gives_the_same_loss() -> None:
    losses = []
    for _ in range(2):
        one = stage(3)
        losses.append([step(one, batch((32, 32, 32)))["loss"] for _ in range(2)])
    assert losses[0] == losses[1]


def test_without_truth_and_labels_only_the_unsupervised_terms_act() -> None:
    terms = step(stage(), batch(truth=False, liver=False))
    assert terms["endpoint"] == 0.0
    assert terms["dice"] == 0.0
    assert terms["mind"] > 0


def test_what_is_not_known_is_not_scored() -> None:
    one = stage()
    assert one.score(batch()).keys() == {"mind", "liver_error_mm", "body_error_mm", "liver_dice"}
    assert one.score(batch(truth=False)).keys() == {"mind", "liver_dice"}
    blind = batch(truth=False, liver=False)
    before = one.score(blind)
    assert before.keys() == {"mind"}
    for _ in range(10):
        step(one, blind)
    assert one.score(blind)["mind"] < before["mind"]


@pytest.mark.parametrize(
    ("judge", "selection"),
    [("truth", ("liver_error_mm", True)), ("livers", ("liver_dice", False)), ("images", ("mind", True))],
)
def test_the_best_weights_are_chosen_by_what_validation_knows(
    judge: str, selection: tuple[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration, "validated_by", lambda cohorts, config: judge)
    assert stage().selection == selection
    assert selection[0] in stage().score(batch())


def test_the_network_that_is_released_is_the_one_that_learned() -> None:
    one = stage()
    net, config = one.export()
    assert net is one.nets()["net"]
    assert config == one.config.net
    one.begin_epoch(10, 10)
    assert one.optimizers()["net"].param_groups[0]["lr"] < 1e-4
