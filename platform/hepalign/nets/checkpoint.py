"""Weights as safetensors beside a JSON config: what a release pins, and all that is ever loaded."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import cast

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from hepalign.errors import BadInputError

# Every network a release may hold: its kind, and where its class and its config's class live. A network takes its
# config as the only argument. Loaded by name so that a process imports only what it runs.
KINDS: dict[str, tuple[str, str, str]] = {
    "resnet-generator": ("hepalign.nets.cyclegan", "ResNetGenerator", "GeneratorConfig"),
    "patch-discriminator": ("hepalign.nets.cyclegan", "PatchDiscriminator", "DiscriminatorConfig"),
    "pconv-unet": ("hepalign.nets.partial_conv", "PConvUNet", "InpaintingNetConfig"),
    "conv-unet": ("hepalign.nets.unet", "ConvUNet", "InpaintingNetConfig"),
    "gated-unet": ("hepalign.nets.gated", "GatedUNet", "InpaintingNetConfig"),
    "registration-net": ("hepalign.nets.regnet", "RegNet", "RegNetConfig"),
}


def unwrap(net: nn.Module) -> nn.Module:
    """The network itself, out of DDP's or a compiler's wrapper."""
    inner = getattr(net, "module", None) or getattr(net, "_orig_mod", None)
    return unwrap(inner) if isinstance(inner, nn.Module) else net


def build_net(kind: str, config: Mapping[str, object]) -> nn.Module:
    """A fresh network of `kind` with the values of `config` (defaults where it says nothing).

    Raises:
        BadInputError: `unknown_network` for a kind not in `KINDS`, `network_config` for values it does not take.
    """
    if kind not in KINDS:
        raise BadInputError(f"no network is called {kind!r}; known: {', '.join(sorted(KINDS))}", code="unknown_network")
    module_name, class_name, config_name = KINDS[kind]
    module = import_module(module_name)
    config_class = cast("type[BaseModel]", getattr(module, config_name))
    try:
        settings = config_class.model_validate(dict(config))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = f"the config of {kind} is off at {where!r}: {first['msg']}"
        raise BadInputError(message, code="network_config") from error
    return cast("nn.Module", getattr(module, class_name)(settings))


def kind_of(net: nn.Module) -> str:
    """The kind under which `build_net` makes this network."""
    name = type(unwrap(net)).__name__
    for kind, (_, class_name, _) in KINDS.items():
        if class_name == name:
            return kind
    raise BadInputError(f"{name} is not a network that a release may hold", code="unknown_network")


def save_weights(net: nn.Module, config: BaseModel, folder: Path, name: str) -> str:
    """Write `<name>.safetensors` and `<name>.json` into `folder`, each complete or not at all.

    Returns:
        The weights file's SHA-256 (hex).
    """
    inner = unwrap(net)
    tensors = {key: value.detach().cpu().contiguous() for key, value in inner.state_dict().items()}
    content = save(tensors, metadata={"format": "pt"})
    description = {"kind": kind_of(inner), "config": config.model_dump(mode="json")}
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / f"{name}.safetensors", content)
    _replace(folder / f"{name}.json", (json.dumps(description, indent=2, sort_keys=True) + "\n").encode())
    return hashlib.sha256(content).hexdigest()


def load_weights(folder: Path, name: str, expected_digest: str | None = None) -> nn.Module:
    """The network of `<name>.json` with the weights of `<name>.safetensors`, in evaluation mode on the CPU.

    Args:
        expected_digest: SHA-256 (hex) that the weights file must have; None only for files this process just wrote.

    Raises:
        BadInputError: `weights_missing`, `weights_digest`, `weights_format` (a pickle, or no safetensors file) or
            `weights_mismatch` (other tensors than the network's).
    """
    content = _read(folder / f"{name}.safetensors")
    digest = hashlib.sha256(content).hexdigest()
    if expected_digest is not None and digest != expected_digest:
        raise BadInputError(
            f"{name}.safetensors is not the file that was pinned (SHA-256 {digest[:12]}…, expected "
            f"{expected_digest[:12]}…): fetch the release again",
            code="weights_digest",
        )
    net = build_net(*_describe(folder, name))
    tensors = _parse(content, name)
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise BadInputError(
            f"{name}.safetensors does not hold the tensors of the network in {name}.json", code="weights_mismatch"
        ) from error
    return net.eval()


def _describe(folder: Path, name: str) -> tuple[str, Mapping[str, object]]:
    try:
        description = json.loads(_read(folder / f"{name}.json"))
        return str(description["kind"]), dict(description["config"])
    except (ValueError, TypeError, KeyError) as error:
        raise BadInputError(f'{name}.json is not {{"kind": …, "config": {{…}}}}', code="weights_format") from error


def _parse(content: bytes, name: str) -> dict[str, Tensor]:
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise BadInputError(
            f"{name}.safetensors is not a safetensors file; pickled weights are never loaded", code="weights_format"
        ) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInputError(f"{path.name} is missing or unreadable", code="weights_missing") from error


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)
