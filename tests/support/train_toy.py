"""A driver of its own: `python train_toy.py SETTINGS_JSON [--resume]` trains the toy stage as `hepalign train` does."""

from __future__ import annotations

import json
import sys

from toy_stage import build_toy

from hepalign import config as config_module
from hepalign.config import load_config
from hepalign.distributed.workers import train

if __name__ == "__main__":
    config_module.COMPONENTS["toy"] = ("toy_stage", "ToyConfig")
    result = train(load_config("toy", json.loads(sys.argv[1])), resume="--resume" in sys.argv, build=build_toy)
    print(result.folder)
