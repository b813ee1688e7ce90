"""A driver of its own: `python train_toy.py SETTINGS_JSON [--tune] [--resume]`, as `hepalign` does."""

from __future__ import annotations

import json
import sys

from toy_stage import build_toy

from hepalign.config import load_config
from hepalign.distributed.tuning import tune
from hepalign.distributed.workers import train

if __name__ == "__main__":
    run = tune if "--tune" in sys.argv else train
    run(load_config("toy", json.loads(sys.argv[1])), resume="--resume" in sys.argv, build=build_toy)
