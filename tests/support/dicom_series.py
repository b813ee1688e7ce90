"""Small DICOM series with any fault in them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

CT, MR, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
ROWS, COLUMNS, SLICES = 6, 8, 5
SPACING = (2.0, 1.5, 3.0)  # between columns, between rows, between slices
OBLIQUE = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]
OBLIQUE *= np.sign(np.linalg.det(OBLIQUE))
ORIGIN = np.array([-20.0, 35.0, 110.0])


def stored(slices: int = SLICES) -> np.ndarray:
    """Stored values (slices, rows, columns); HU are stored - 1024."""
    return np.random.default_rng(0).integers(0, 2000, (slices, ROWS, COLUMNS)).astype(np.int16)


def one(k: int, modality: str = "CT", direction: np.ndarray = OBLIQUE, **changes: object) -> FileDataset:
    """Slice k of a series; `changes` set attributes, None deletes them."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CT if modality == "CT" else MR
    meta.MediaStorageSOPInstanceUID = f"1.2.3.{k + 1}"
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, f"1.2.3.{k + 1}"
    dataset.PatientID, dataset.PatientName, dataset.Modality = "P-4711", "Doe^Jane", modality
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.4", "1.2.5", "1.2.6"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.InstanceNumber = k + 1
    dataset.Rows, dataset.Columns = ROWS, COLUMNS
    dataset.PixelSpacing = [SPACING[1], SPACING[0]]
    dataset.ImageOrientationPatient = np.round(direction[:, :2].T.ravel(), 12).tolist()
    dataset.ImagePositionPatient = np.round(ORIGIN + k * SPACING[2] * direction[:, 2], 9).tolist()
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    if modality == "CT":
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.PixelData = stored(max(SLICES, k + 1))[k].tobytes()
    for keyword, value in changes.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    return dataset


def series(modality: str = "CT", slices: int = SLICES, **changes: object) -> list[FileDataset]:
    return [one(k, modality, **changes) for k in range(slices)]  # type: ignore[arg-type]


def enhanced(order: Sequence[int] = range(SLICES)) -> FileDataset:
    """The same slices as one multi-frame MR object, its frames in `order`, each with its own slope."""
    dataset = one(0, "MR", PixelSpacing=None, ImageOrientationPatient=None, ImagePositionPatient=None)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = ENHANCED_MR
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [SPACING[1], SPACING[0]]
    orientation.ImageOrientationPatient = one(0).ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Items([measures]), Items([orientation])
    dataset.SharedFunctionalGroupsSequence = Items([shared])
    frames = []
    for k in order:
        frame, position, values = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = one(k).ImagePositionPatient
        values.RescaleSlope, values.RescaleIntercept = 1 + k, 10
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = Items([position]), Items([values])
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = Items(frames)
    dataset.NumberOfFrames = len(frames)
    dataset.PixelData = np.stack([stored()[k] for k in order]).tobytes()
    return dataset


def as_bytes(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    syntax = dataset.file_meta.TransferSyntaxUID
    known = {ImplicitVRLittleEndian: (True, True), ExplicitVRBigEndian: (False, False)}
    implicit, little = known.get(syntax, (False, True))
    pydicom.dcmwrite(
        buffer, dataset, implicit_vr=implicit, little_endian=little, enforce_file_format=False, force_encoding=True
    )
    return buffer.getvalue()


def write(folder: Path, datasets: Sequence[Dataset], name: Callable[[int], str] = "Doe^Jane {:03d}.dcm".format) -> Path:
    """Write a series into a new folder, in an order that is not the slices'."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, dataset in enumerate(datasets):
        (folder / name((number * 7) % 11)).write_bytes(as_bytes(dataset))
    return folder


def zipped(path: Path, datasets: Sequence[Dataset]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, dataset in enumerate(datasets):
            archive.writestr(f"DICOM/S1/{number}.dcm", as_bytes(dataset))
    return path
