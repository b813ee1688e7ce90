"""Hepalign: MR-CT registration for image-guided thermal ablation of liver tumours. Research use only."""

import os

__version__ = "0.1.0"

# Large tensors on pages of 2 MiB where Linux gives them to those who ask: fewer page faults, and reads all over a
# volume find their addresses sooner. torch looks for this once, at its first tensor: later is too late.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
