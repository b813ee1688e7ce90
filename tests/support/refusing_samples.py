"""Samples that a process of its own can make, one of which is refused."""

from __future__ import annotations

import numpy as np
import torch

from hepalign.cases.loading import Sample
from hepalign.errors import BadInputError


class RefusingSamples:
    """Three samples; the last one's file was changed."""

    def __len__(self) -> int:
        return 3

    def make(self, index: int, rng: np.random.Generator) -> Sample:
        if index == 2:
            raise BadInputError("bad case", code="changed_file")
        return {"n": torch.tensor(index)}
