"""Ablations: one part of the release's chain left out, exchanged, or trained otherwise."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch

from hepalign.errors import UsageError
from hepalign.evaluation.baselines import find_baselines
from hepalign.evaluation.baselines.isolated import run_apart
from hepalign.evaluation.methods import Answer, Method, Running, Solved, proposed_method, required_probe_mask
from hepalign.evaluation.pairs import Patient
from hepalign.inference.bundle import Bundle
from hepalign.inference.inpaint import inpaint
from hepalign.inference.planner import plan
from hepalign.inference.register import Engine, Registration, register
from hepalign.inference.synthesise import synthesise
from hepalign.nets.checkpoint import build_net, load_weights
from hepalign.nets.fill import smooth_fill
from hepalign.nets.precision import channels_last

Maker = Callable[[str, Bundle, Running], Method]
ON_INPAINTED = "@inpainted"


@dataclass(frozen=True)
class Absent:
    """An ablation that was asked for and cannot run here, and why."""

    reason: str


# The paper's ablations that need weights of their own: name -> what to train (the settings beside the release's); the
# kinds of convolution are compared without a prior. `jobs/ablations.py` trains them.
TRAINED_ABLATIONS = {
    "cyclegan": ("synthesis", "losses.mutual_information=0"),
    "conv": ("inpainting", "kind=conv-unet net.prior=false"),
    "gated": ("inpainting", "kind=gated-unet net.prior=false"),
    "pconv-no-prior": ("inpainting", "net.prior=false"),
}


def untrained_reason(name: str) -> str:
    """Why a trained ablation of the paper is not in an evaluation, and the mend."""
    stage, setting = TRAINED_ABLATIONS[name]
    return f"needs weights of its own: hepalign train {stage} … {setting}, then --ablate {name}={stage}:FOLDER"


def exchanged_bundle(bundle: Bundle, stage: str, folder: Path) -> Bundle:
    """The release with one stage's network taken from a training's folder.

    Raises:
        BadInputError: `weights_missing` and what else `load_weights` raises.
    """
    net = load_weights(folder, stage)
    described = json.loads((folder / f"{stage}.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256((folder / f"{stage}.safetensors").read_bytes()).hexdigest()
    manifest = {**bundle.manifest, "version": f"{bundle.manifest['version']} with another {stage} network"}
    return replace(
        bundle, networks={**bundle.networks, stage: channels_last(net)}, manifest=manifest,
        configs={**bundle.configs, stage: described}, digests={**bundle.digests, stage: digest},
    )  # fmt: skip


def untrained_bundle(bundle: Bundle, seed: int) -> Bundle:
    """The same architectures as they start a training: what the training is worth."""
    torch.manual_seed(seed)
    networks = {
        stage: build_net(str(made["kind"]), cast("Mapping[str, object]", made["config"])).eval()
        for stage, made in bundle.configs.items()
    }
    manifest = {**bundle.manifest, "name": "untrained", "version": str(seed)}
    return replace(bundle, networks=networks, manifest=manifest)


def is_variant(word: str) -> bool:
    """Whether the word names a variant rather than another release."""
    return word in VARIANTS or word.endswith(ON_INPAINTED)


def variant_method(word: str, name: str, bundle: Bundle, running: Running) -> Method:
    """The method of a variant's word, called `name`; `PEER@inpainted` gives a peer our inpainted iCT.

    Raises:
        UsageError: `unknown_variant`, `unknown_baseline`.
    """
    if word.endswith(ON_INPAINTED):
        return _peer_on_inpainted(word.removesuffix(ON_INPAINTED), name, bundle, running)
    if word not in VARIANTS:
        words = ", ".join([*VARIANTS, f"PEER{ON_INPAINTED}"])
        raise UsageError(f"no ablation is called {word!r}; there are {words}, or a release", code="unknown_variant")
    return VARIANTS[word](name, bundle, running)


def _untrained(name: str, bundle: Bundle, running: Running, *, engine: Engine) -> Method:
    return proposed_method(untrained_bundle(bundle, running.seed), engine, running, name=name, family="ablation")


def _registered(name: str, bundle: Bundle, about: str, solve: Callable[[Patient], Registration]) -> Method:
    """A method that answers pCT-iCT alone."""

    def answer(patient: Patient) -> Answer:
        if "pCT-iCT" not in patient.pairs():
            return Answer()
        started = time.perf_counter()
        found = solve(patient)
        return Answer({"pCT-iCT": Solved(found.field, time.perf_counter() - started, found.timings)})

    return Method(name, "ablation", f"release {bundle.name}: {about}", answer)


def _no_inpainting(name: str, bundle: Bundle, running: Running) -> Method:
    del running
    return _registered(
        name, bundle, "the iCT as it is, the probe mask withheld; engine refine",
        lambda patient: register(bundle, patient.volume("pct"), patient.volume("ict")),
    )  # fmt: skip


def _inpaint_first(name: str, bundle: Bundle, running: Running) -> Method:
    del running

    def solve(patient: Patient) -> Registration:
        made = inpaint(bundle, patient.volume("ict"), required_probe_mask(patient), None)
        return register(bundle, patient.volume("pct"), made.image)

    about = "inpainted without a prior, then registered, every voxel counted (the paper's order); engine refine"
    return _registered(name, bundle, about, solve)


def _network(name: str, bundle: Bundle, running: Running) -> Method:
    del running
    return _registered(
        name, bundle, "the network's field, not refined",
        lambda patient: register(
            bundle, patient.volume("pct"), patient.volume("ict"), engine="network",
            probe_mask=patient.mask("ict_probe_mask"),
        ),
    )  # fmt: skip


def _untrained_network(name: str, bundle: Bundle, running: Running) -> Method:
    return _network(name, untrained_bundle(bundle, running.seed), running)


def _planned(name: str, about: str, solve: Callable[[Patient], Answer]) -> Method:
    """A method that answers pMR-pCT alone."""

    def answer(patient: Patient) -> Answer:
        return solve(patient) if "pMR-pCT" in patient.pairs() else Answer()

    return Method(name, "ablation", about, answer)


def _ants_planning(name: str, bundle: Bundle, running: Running) -> Method:
    del running

    def solve(patient: Patient) -> Answer:
        started = time.perf_counter()
        planned = plan(bundle, patient.volume("pmr"), patient.volume("pct"), labels={}, engine="ants")
        seconds = time.perf_counter() - started
        return Answer({"pMR-pCT": Solved(planned.field_pct_from_pmr, seconds, planned.timings)})

    about = f"release {bundle.name}: the synthetic CT registered by ANTs (rigid + SyN), the paper's own planning"
    return _planned(name, about, solve)


def _through_sct(name: str, bundle: Bundle, running: Running) -> Method:
    del running

    def solve(patient: Patient) -> Answer:
        started = time.perf_counter()
        synthetic = synthesise(bundle, patient.volume("pmr"))
        synthesis_s = time.perf_counter() - started
        found = register(bundle, synthetic, patient.volume("pct"))
        steps = {"synthesise": synthesis_s, **found.timings}
        return Answer({"pMR-pCT": Solved(found.field, sum(steps.values()), steps)}, synthetic_ct=synthetic)

    about = f"release {bundle.name}: the synthetic CT registered as a CT, the MR not looked at (the paper's route)"
    return _planned(name, about, solve)


def _no_prior(name: str, bundle: Bundle, running: Running) -> Method:
    del running

    def solve(patient: Patient) -> Answer:
        if not patient.case.has("ict", "ict_probe_mask"):
            return Answer()
        made = inpaint(bundle, patient.volume("ict"), required_probe_mask(patient), None)
        return Answer(inpainted=made.image)

    return Method(name, "ablation", f"release {bundle.name}: inpainting without the pCT as a prior", solve)


def _smooth_fill(name: str, bundle: Bundle, running: Running) -> Method:
    del bundle, running

    def solve(patient: Patient) -> Answer:
        if not patient.case.has("ict", "ict_probe_mask"):
            return Answer()
        ict = patient.volume("ict")
        image = torch.from_numpy(ict.as_float())[None, None]
        valid = torch.from_numpy(~required_probe_mask(patient).as_mask()).float()[None, None]
        return Answer(inpainted=ict.with_data(np.asarray(smooth_fill(image, valid)[0, 0].numpy())))

    return Method(name, "ablation", "inpainting by averages of the rim (push-pull), no network", solve)


def _peer_on_inpainted(peer: str, name: str, bundle: Bundle, running: Running) -> Method:
    baseline = find_baselines([peer])[0]

    def solve(patient: Patient) -> Answer:
        if "pCT-iCT" not in patient.pairs():
            return Answer()
        started = time.perf_counter()
        made = inpaint(bundle, patient.volume("ict"), required_probe_mask(patient), None)
        inpainting_s = time.perf_counter() - started
        task = baseline.task(patient.volume("pct"), made.image, threads=running.threads, seed=running.seed)
        found = run_apart([task])[0]
        if isinstance(found, str):
            return Answer(failed={"pCT-iCT": found})
        steps = {"inpaint": inpainting_s, **found.steps}
        return Answer({"pCT-iCT": Solved(found.field, sum(steps.values()), steps)})

    about = f"{peer} on the iCT that release {bundle.name} inpainted (no prior); no mask: every voxel counts"
    return Method(name, "ablation", about, solve)


VARIANTS: dict[str, Maker] = {
    "untrained": partial(_untrained, engine="refine"),
    "untrained-fast": partial(_untrained, engine="fast"),
    "network": _network,
    "untrained-network": _untrained_network,
    "no-inpainting": _no_inpainting,
    "inpaint-first": _inpaint_first,
    "ants-planning": _ants_planning,
    "through-sct": _through_sct,
    "no-prior": _no_prior,
    "smooth-fill": _smooth_fill,
}
