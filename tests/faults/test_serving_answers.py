"""What a guide answers when images do not belong together or networks fail, over HTTP: FAULTS 37, 40 to 43, 71, 72."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from served import Served, nifti_bytes, problem
from small_pairs import SmallPair, body_ct, small_pair

from hepalign.image.geometry import Geometry
from hepalign.image.read import read_volume
from hepalign.image.volume import Volume

PLAN_REJECTED = "the plan itself was rejected"


@pytest.fixture(autouse=True)
def _no_orders_left(served: Served) -> Iterator[None]:
    yield
    for order in served.control.iterdir():
        order.unlink()


def guide(served: Served, case: str, key: str, **body: object) -> httpx2.Response:
    headers = {"Idempotency-Key": f"{key}-{case}", "Prefer": "wait=60"}
    return served.call("POST", f"/v1/cases/{case}/guide", json={"engine": "fast"} | body, headers=headers)


def result_of(answer: httpx2.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()["result"]
    return result


@pytest.fixture(scope="module")
def pair() -> SmallPair:
    return small_pair(1)


def planned(served: Served, pct: Volume, pair: SmallPair, folder: Path) -> str:
    """A planned case of a pCT with two tumours and no liver, and of the pair's iCT."""
    tumours = np.zeros(pct.geometry.shape, np.uint8)
    tumours[30:34, 26:30, 12:16], tumours[34:38, 18:22, 18:22] = 3, 7
    sent = {
        "pmr": read_volume(served.images["pmr"]),
        "pct": pct,
        "pct-tumour": Volume(tumours, pct.geometry),
        "ict": pair.fixed,
        "ict-probe-mask": pair.probe_mask,
    }
    with served.client() as client:
        case = client.open_case()
        for role, volume in sent.items():
            data = np.asarray(volume.data)
            whole = volume if data.dtype != bool else volume.with_data(data.astype(np.uint8))
            assert served.put(case, role, nifti_bytes(whole, folder)).status_code == 201
        client.wait(client.plan(case, engine="learned", wait_s=60)["id"])
    return case


@pytest.fixture(scope="module")
def case(served: Served, pair: SmallPair, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A case of a CT pair that registration can trust."""
    return planned(served, pair.moving, pair, tmp_path_factory.mktemp("pair"))


def test_fault_40_several_tumours_are_kept_apart(served: Served, case: str, tmp_path: Path) -> None:
    result = result_of(guide(served, case, "tumours"))
    assert sorted(result["labels"].values()) == ["tumour 1", "tumour 2"]
    answer = served.call("GET", f"/v1/cases/{case}/artifacts/labels_on_ict.nii.gz")
    (tmp_path / "labels.nii.gz").write_bytes(answer.content)
    found = set(np.unique(read_volume(tmp_path / "labels.nii.gz").data).tolist())
    assert found == {0, *(int(value) for value in result["labels"])}


def test_fault_41_no_liver_mask_is_a_warning(served: Served, case: str) -> None:
    assert any("no liver mask" in warning for warning in result_of(guide(served, case, "liver"))["warnings"])


def test_every_result_says_what_it_rests_on(served: Served, case: str) -> None:
    result = result_of(guide(served, case, "provenance"))
    assert result["quality"]["status"] in ("accept", "review", "reject")
    assert result["release"]["version"] == "0"
    assert set(result["weight_digests"]) == {"synthesis", "inpainting", "registration"}
    assert len(result["plan_digest"]) == 64
    assert "warped(x) = moving(x + u(x))" in str(result["convention"])
    assert result["research_use_only"]


def test_fault_71_a_failing_network_falls_back(served: Served, case: str) -> None:
    served.order("guide", "network fails")
    result = result_of(guide(served, case, "fallback"))
    assert result["quality"]["method"] == "affine+coarse+refine"
    assert result["degraded"]


def test_fault_72_when_the_fallback_fails_too_nothing_is_warped(served: Served, case: str) -> None:
    served.order("guide", "refinement fails too")
    answer = guide(served, case, "nothing-works")
    result = result_of(answer)
    assert result["quality"]["status"] == "reject"
    assert result["quality"]["reasons"]
    assert result["labels"] == {}
    job = answer.json()["id"]
    assert "labels_on_ict.nii.gz" not in answer.json()["artifacts"]
    missing = served.call("GET", f"/v1/cases/{case}/artifacts/labels_on_ict.nii.gz?job={job}")
    problem(missing, 404, "not_found")
    # A rejected image says so wherever it goes.
    image = served.call("GET", f"/v1/cases/{case}/artifacts/pct_on_ict.nii.gz?job={job}")
    assert image.headers["hepalign-quality"] == "reject"
    assert "REJECTED-pct_on_ict.nii.gz" in image.headers["content-disposition"]


def test_fault_43_another_patient_is_rejected(served: Served, case: str, pair: SmallPair, tmp_path: Path) -> None:
    own = result_of(guide(served, case, "own", engine="refine"))
    # An untrained synthesis makes a plan that is rejected; the registration of the CTs is not.
    assert set(own["quality"]["reasons"]) <= {PLAN_REJECTED}
    mistaken = planned(served, body_ct(77), pair, tmp_path)
    other = result_of(guide(served, mistaken, "stranger", engine="refine"))
    assert other["quality"]["status"] == "reject"
    assert set(other["quality"]["reasons"]) - {PLAN_REJECTED}


def test_fault_42_no_overlap_and_37_a_mask_left_behind(
    served: Served, case: str, pair: SmallPair, tmp_path: Path
) -> None:
    """Found only when the job runs: its problem is the answer."""
    affine = pair.fixed.geometry.affine.copy()
    affine[:3, 3] += 3000
    away = Geometry(pair.fixed.geometry.shape, affine)
    assert served.put(case, "ict", nifti_bytes(Volume(pair.fixed.data, away), tmp_path)).status_code == 201
    told = problem(guide(served, case, "old-mask"), 422, "frame_mismatch")
    assert served.call("GET", f"/v1/jobs/{told['job']}").json()["problem"]["code"] == "frame_mismatch"
    mask = pair.probe_mask.data.astype(np.uint8)
    assert served.put(case, "ict-probe-mask", nifti_bytes(Volume(mask, away), tmp_path)).status_code == 201
    problem(guide(served, case, "far-away"), 422, "no_overlap")
