"""DICOM segmentations of the series of `dicom_series`, as highdicom writes them."""

from __future__ import annotations

from collections.abc import Sequence

import highdicom as hd
import numpy as np
import pydicom
from dicom_series import series
from numpy.typing import NDArray
from pydicom.sr.codedict import codes


def segmentation(
    masks: Sequence[NDArray[np.bool_]], labels: Sequence[str], *, kind: str = "BINARY", omit_empty: bool = True
) -> pydicom.Dataset:
    images = series(
        PatientBirthDate="", PatientSex="", StudyDate="", StudyTime="", AccessionNumber="", StudyID="",
        ReferringPhysicianName="", SliceThickness=3, PositionReferenceIndicator="",
    )  # fmt: skip
    described = [
        hd.seg.SegmentDescription(
            n, label, codes.SCT.Organ, codes.SCT.Organ, hd.seg.SegmentAlgorithmTypeValues.MANUAL
        )
        for n, label in enumerate(labels, start=1)
    ]  # fmt: skip
    stack = np.stack(masks, axis=-1)
    return hd.seg.Segmentation(
        images,
        stack.astype(np.float32) * 0.7 if kind == "FRACTIONAL" else stack.astype(np.uint8),
        hd.seg.SegmentationTypeValues[kind],
        described,
        series_instance_uid="1.2.70",
        series_number=3,
        sop_instance_uid="1.2.71",
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="n",
        software_versions="1",
        device_serial_number="1",
        omit_empty_frames=omit_empty,
    )
