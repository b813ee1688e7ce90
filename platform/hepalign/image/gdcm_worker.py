"""The process in which GDCM decodes: hostile JPEG lossless streams have been seen to end it with a segmentation fault.

`python -m hepalign.image.gdcm_worker FOLDER` turns every FOLDER/*.dcm into a .npy of (frames, rows, columns).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk


def decode_folder(folder: Path) -> None:
    """Decode every DICOM file of a folder beside it."""
    for path in sorted(folder.glob("*.dcm")):
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(path))
        np.save(path.with_suffix(".npy"), sitk.GetArrayFromImage(reader.Execute()), allow_pickle=False)


if __name__ == "__main__":
    decode_folder(Path(sys.argv[1]))
