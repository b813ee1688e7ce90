"""A made-up abdomen with everything known about it: anatomy, motion, scans, probes."""

from __future__ import annotations

from hepalign.cases.phantom.case import PhantomCase
from hepalign.cases.phantom.config import PhantomConfig
from hepalign.cases.phantom.make import make_case

__all__ = ["PhantomCase", "PhantomConfig", "make_case"]
