"""What a phantom may look like: the ranges every draw is taken from."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Range = tuple[float, float]


class PhantomConfig(BaseModel):
    """Ranges a phantom case is drawn from; every one is uniform between its two ends.

    The defaults are the hard mode: after the best rigid map 5 to 8 mm remain in the liver, on average, between pCT
    and pMR and between iCT and pCT.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    randomised: bool = Field(False, description="random intensities per organ instead of physical ones")
    breathing_mm: Range = Field((5.0, 25.0), description="cranio-caudal breathing between two images; AP is a third")
    rigid_residual_mm: Range = Field((5.2, 7.8), description="mean in the liver after the best rigid map")
    session_rotation_deg: float = Field(4.0, ge=0, description="largest rotation between two sessions, each axis")
    session_shift_mm: float = Field(12.0, ge=0, description="largest shift between two sessions, each axis")
    on_side_share: float = Field(0.12, ge=0, le=1, description="share of iCTs with the patient turned on a side")
    on_side_deg: Range = (20.0, 45.0)
    tumours: tuple[int, int] = Field((1, 3), description="fewest and most tumours")
    tumour_radius_mm: Range = (6.0, 18.0)
    needles: tuple[int, int] = Field((1, 3), description="fewest and most needles")
    ablation_share: float = Field(0.3, ge=0, le=1, description="share of iCTs with an ablation zone and gas")
    steatosis_share: float = Field(0.2, ge=0, le=1)
    ct_noise_hu: Range = Field((8.0, 18.0), description="standard deviation at 2.8 mm voxels")
    mr_noise: Range = Field((0.01, 0.035), description="Rician sigma over the brightest soft tissue")
    mr_slice_mm: Range = Field((3.0, 6.0), description="slice thickness of the pMR")
    mr_shading: Range = Field((0.05, 0.3), description="deviation of the logarithm of the coil's bias field")
    grids: Literal["shared", "clinical"] = Field(
        "shared", description="one grid for all, or a thick oblique pMR and an iCT 150 mm short in z"
    )
