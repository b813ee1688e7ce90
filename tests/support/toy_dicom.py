"""A volume as a DICOM series with a patient's name all over it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from hepalign.image.volume import Volume

PATIENT_ID = "4711-0815"
PATIENT_NAME = "Mustermann^Erika"


def write_dicom(volume: Volume, folder: Path, *, modality: str = "CT", patient_id: str = PATIENT_ID) -> Path:
    """One object a slice; the volume's axes lie along the world's (RAS), its values are whole numbers."""
    folder.mkdir(parents=True)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    spacing = volume.geometry.spacing_mm
    offset = -1024 if modality == "CT" else 0
    for k in range(volume.geometry.shape[2]):
        x, y, z = volume.geometry.index_to_world((0, 0, k)).tolist()
        header = Dataset()
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.SOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
        header.SOPInstanceUID = generate_uid()
        header.PatientID, header.PatientName, header.PatientBirthDate = patient_id, PATIENT_NAME, "19640812"
        header.InstitutionName, header.SeriesDescription = "Charité", f"Abdomen {PATIENT_NAME}"
        header.Modality, header.PatientPosition, header.KVP = modality, "HFS", "120"
        header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = study, series, frame
        header.InstanceNumber = k + 1
        header.ImagePositionPatient = [-x, -y, z]
        header.ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]
        header.PixelSpacing = [spacing[1], spacing[0]]
        header.SliceThickness = spacing[2]
        header.Rows, header.Columns = volume.geometry.shape[1], volume.geometry.shape[0]
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 0
        header.RescaleSlope, header.RescaleIntercept = 1, offset
        plane = np.rint(volume.as_float()[:, :, k].T - offset).clip(0, 65535).astype(np.uint16)
        header.PixelData = plane.tobytes()
        header.save_as(folder / f"{PATIENT_NAME}-{k:03d}.dcm", enforce_file_format=True)
    return folder


def write_segmentation(series: Path, mask: Volume, path: Path, label: str) -> Path:
    """A SEG over a series of `write_dicom`; the mask lies on the volume's grid."""
    images = sorted((pydicom.dcmread(file) for file in series.iterdir()), key=lambda image: int(image.InstanceNumber))
    for image in images:
        image.PatientSex = image.StudyDate = image.StudyTime = image.AccessionNumber = image.StudyID = ""
        image.ReferringPhysicianName = image.PositionReferenceIndicator = ""
    described = hd.seg.SegmentDescription(
        1, label, codes.SCT.Organ, codes.SCT.Organ, hd.seg.SegmentAlgorithmTypeValues.MANUAL
    )
    made = hd.seg.Segmentation(
        images,
        np.ascontiguousarray(mask.as_mask().transpose(2, 1, 0)).astype(np.uint8),
        hd.seg.SegmentationTypeValues.BINARY,
        [described],
        series_instance_uid=generate_uid(),
        series_number=3,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="n",
        software_versions="1",
        device_serial_number="1",
    )
    made.save_as(path)
    return path


def zipped(folder: Path, path: Path) -> Path:
    """The folder's files in a zip."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"DICOM/{file.name}")
    return path
