"""The builder that Ray Serve's own config files name: `import_path: hepalign_serve.app:build`."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel
from ray import serve

from hepalign_serve.deployments import compose
from hepalign_serve.run import prepare
from hepalign_serve.settings import load_settings


class Arguments(BaseModel):
    """The `args` of the Serve config."""

    config: Path


def build(arguments: Arguments) -> serve.Application:
    """The application on a cluster that runs already; sites come from `hepalign sites add`."""
    settings = load_settings(arguments.config)
    prepare(settings)
    return compose(settings)
