"""How the replicas are put together: ingress → desk → planning and registration → synthesis and inpainting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray import serve

from hepalign_serve.desk import Desk
from hepalign_serve.ingress import Ingress
from hepalign_serve.replicas import Network, Worker
from hepalign_serve.settings import Replicas, Settings

if TYPE_CHECKING:
    # Ingress, desk and whoever starts the service stay small: only computing replicas load torch.
    from hepalign_serve.pipeline import Pipeline

BOOKKEEPING_CPUS = 0.01
IDLE_BEFORE_SHRINKING_S = 300.0


def compose(settings: Settings, pipeline: Pipeline | None = None) -> serve.Application:
    """The application. Plans and guides have lanes of their own: a guide never waits behind a plan.

    Args:
        settings: sizes, folders, the release.
        pipeline: what replicas compute; the paper's chain by default.
    """
    synthesis = _computing(Network, "Synthesis", settings, settings.synthesis, pipeline, "synthesise")
    inpainting = _computing(Network, "Inpainting", settings, settings.inpainting, pipeline, "inpaint")
    planning = _computing(Worker, "Planning", settings, settings.plan, pipeline, synthesis, "synthesise")
    registration = _computing(Worker, "Registration", settings, settings.guide, pipeline, inpainting, "inpaint")
    shadow = None
    if settings.candidate:
        from hepalign_serve.shadow import Shadow

        shadow = _computing(Shadow, "Shadow", settings, settings.shadow, pipeline)
    small = {"num_cpus": BOOKKEEPING_CPUS}
    desk = serve.deployment(name="Desk", num_replicas=1, max_ongoing_requests=1000, ray_actor_options=small)(Desk)
    ingress = serve.deployment(
        name="Ingress",
        num_replicas=settings.ingress_replicas,
        max_ongoing_requests=200,
        max_queued_requests=200,
        ray_actor_options=small,
    )(serve.ingress()(Ingress))
    app: serve.Application = ingress.bind(settings, desk.bind(settings, planning, registration, shadow))
    return app


def _computing(
    kind: type, name: str, settings: Settings, share: Replicas, pipeline: Pipeline | None, *needs: object
) -> serve.Application:
    deployment = serve.deployment(
        name=name,
        max_ongoing_requests=1,
        max_queued_requests=settings.limits.queued_jobs,
        health_check_period_s=1,
        health_check_timeout_s=60,
        graceful_shutdown_timeout_s=max(settings.plan.deadline_s, settings.guide.deadline_s),
        ray_actor_options={"num_cpus": share.num_cpus, "num_gpus": share.num_gpus},
        **_scaling(share),
    )(kind)
    bound: serve.Application = deployment.bind(name, settings, share, pipeline, *needs)
    return bound


def _scaling(share: Replicas) -> dict[str, Any]:
    if share.most == share.replicas:
        return {"num_replicas": share.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": share.replicas,
            "max_replicas": share.most,
            "target_ongoing_requests": 1,
            "metrics_interval_s": 1,
            "look_back_period_s": 3,
            "upscale_delay_s": 2,
            "downscale_delay_s": IDLE_BEFORE_SHRINKING_S,
        }
    }
