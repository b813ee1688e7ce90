"""Hepalign: MR-CT registration for image-guided thermal ablation of liver tumours. Research use only."""

__version__ = "0.1.0"
