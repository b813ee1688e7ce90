"""The coil's shading of an MR image, found by N4 (Tustison et al. 2010)."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from hepalign.image.resample import resample
from hepalign.image.volume import Volume

# Shading changes over hundreds of millimetres; liver, spleen and vessels do not.
BIAS_SPACING_MM = 8.0
CONTROL_SPACING_MM = 160.0
ROUNDS = (30, 20, 10)


def bias_field(mr: Volume) -> Volume:
    """The smooth factor by which an MR image is shaded.

    Args:
        mr: scanner units, any grid.

    Returns:
        float32, positive, on the image's grid, of geometric mean 1 in the foreground: `mr / bias` is the corrected
        image, and multiplying gives the original back. 1 everywhere for an image without foreground.
    """
    shape = [max(4, round(extent / BIAS_SPACING_MM)) for extent in mr.geometry.extent_mm]
    coarse_shape = tuple(min(n, full) for n, full in zip(shape, mr.geometry.shape, strict=True))
    coarse = resample(mr, mr.geometry.with_shape((coarse_shape[0], coarse_shape[1], coarse_shape[2])))
    data = coarse.as_float()
    foreground = data > data.mean(dtype=np.float64)
    if not foreground.any():
        return mr.with_data(np.ones(mr.geometry.shape, np.float32))
    image = sitk.GetImageFromArray(np.ascontiguousarray((data - data.min() + 1.0).transpose(2, 1, 0)))
    image.SetSpacing(coarse.geometry.spacing_mm)
    mask = sitk.GetImageFromArray(foreground.astype(np.uint8).transpose(2, 1, 0))
    mask.CopyInformation(image)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(ROUNDS)
    spans = (max(1, round(extent / CONTROL_SPACING_MM)) for extent in mr.geometry.extent_mm)
    n4.SetNumberOfControlPoints([span + 3 for span in spans])
    n4.Execute(image, mask)
    log_bias = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).transpose(2, 1, 0).astype(np.float32)
    log_bias -= log_bias[foreground].mean(dtype=np.float64)
    smooth = resample(coarse.with_data(log_bias), mr.geometry)
    return smooth.with_data(np.exp(smooth.as_float()))
