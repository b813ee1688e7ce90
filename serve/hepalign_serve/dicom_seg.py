"""Label maps as DICOM segmentations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import highdicom as hd
import numpy as np
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from hepalign.image.volume import Volume
from hepalign_serve.dicom_source import MANUFACTURER, MODEL

# What viewers draw when nobody says otherwise: CIELab of the viewer's own colours.
_COLOURS = {"liver": (60, 220, 90), "tumour": (255, 64, 255), "synthetic": (0, 229, 255)}


def segmentation(volume: Volume, names: Mapping[int, str], carriers: Sequence[Dataset]) -> Dataset:
    """A binary SEG with one segment a label value that is there.

    Args:
        volume: the label map, on the iCT's grid.
        names: what its values mean: `liver`, `tumour 1` …, `synthetic`.
        carriers: the iCT's slices, in the volume's order.
    """
    data = np.asarray(volume.data)
    values = sorted(names)
    # highdicom wants (slice, row, column, segment).
    frames = np.stack([data == value for value in values], axis=-1).transpose(2, 1, 0, 3)
    return hd.seg.Segmentation(
        source_images=list(carriers),
        pixel_array=np.ascontiguousarray(frames).astype(np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_segment(n, names[value]) for n, value in enumerate(values, start=1)],
        series_instance_uid=generate_uid(prefix=None),
        series_number=1,
        sop_instance_uid=generate_uid(prefix=None),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL,
        software_versions="unknown",
        device_serial_number="0",
        omit_empty_frames=False,
    )


def _segment(number: int, name: str) -> hd.seg.SegmentDescription:
    category, kind = _coded(name)
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=MODEL, family=codes.DCM.ArtificialIntelligence, version="1"
        ),
        display_color=hd.color.CIELabColor.from_rgb(*_COLOURS[name.partition(" ")[0]]),
    )


def _coded(name: str) -> tuple[hd.sr.CodedConcept, hd.sr.CodedConcept]:
    """Category and type of a segment: the liver, a tumour, or synthetic voxels."""
    if name.startswith("liver"):
        found = codes.SCT.AnatomicalStructure, codes.SCT.Liver
    elif name.startswith("tumour"):
        found = codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Neoplasm
    else:
        found = codes.SCT.SpatialAndRelationalConcept, codes.DCM.ImageArtifacts
    category, kind = (hd.sr.CodedConcept(code.value, code.scheme_designator, code.meaning) for code in found)
    return category, kind
