"""The viewer in a real headless Chromium: its pixels are compared with the images that it shows."""

from __future__ import annotations

import io
import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_dicom
from axe_playwright_python.sync_playwright import Axe
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from shown_site import MARGINS, Shown, result_of

from hepalign.image.nifti import write_nifti
from hepalign.image.resample import resample
from hepalign.image.volume import Volume
from hepalign.transform.warp import warp
from hepalign_serve.records import Job

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
# WebGL2 without a GPU; root in CI's container has no sandbox.
ARGUMENTS = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox"]
# a busy machine takes its time; what comes is taken at once
expect.set_options(timeout=60_000)
TUMOUR, LIVER, SYNTHETIC = (255, 64, 255), (60, 220, 90), (0, 229, 255)
AMBER, RED, GREEN = (255, 181, 46), (179, 32, 31), (29, 107, 65)
STATUSES = {"accept": GREEN, "review": AMBER, "reject": RED}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("no Chromium here: install Debian's chromium to test the viewer")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield launched
        launched.close()


@dataclass
class Opened:
    """The page, signed in; what it asked for and complained of."""

    page: Page
    asked: list[str]
    wrong: list[str]

    def tick(self, name: str, value: str) -> None:
        self.page.check(f"input[name={name}][value={value}]")
        self.page.wait_for_timeout(400)

    def stage(self) -> NDArray[np.int16]:
        """The stage's pixels, (rows, columns, 3)."""
        self.page.mouse.move(2, 2)
        self.page.wait_for_timeout(400)
        shot = self.page.locator("#stage").screenshot()
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(np.int16)


@pytest.fixture(scope="module")
def opened(browser: Browser, shown: Shown) -> Iterator[Opened]:
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    made = Opened(page, [], [])
    page.on("request", lambda request: made.asked.append(request.url))
    page.on("console", lambda line: made.wrong.append(line.text) if line.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: made.wrong.append(str(error)))
    page.goto(shown.url)
    page.fill("#token", shown.token)
    page.press("#token", "Enter")
    expect(page.locator("#release")).to_have_text("release hepalign 7")
    yield made
    page.close()


@pytest.fixture
def case(opened: Opened, shown: Shown) -> Opened:
    """The case with results, shown as at first."""
    page = opened.page
    page.locator("#readout").evaluate("line => { line.textContent = ''; }")
    page.click(f"text={shown.case[:10]}")
    expect(page.locator("#readout")).to_contain_text("HU")
    for value in ("ict", "pmr", "after", "blend", "axial"):
        page.check(f"input[type=radio][value={value}]")
    page.locator("#share").fill("50")
    page.check("#contours")
    page.select_option("#window", "Soft tissue")
    page.focus("#stage")  # a key pressed in a list of choices is the list's
    expect(page.locator("#stage")).to_have_attribute("aria-busy", "false")
    return opened


def box(found: NDArray[np.bool_]) -> NDArray[np.float64]:
    """First and past-the-last row and column."""
    rows, columns = np.nonzero(found)
    return np.array([rows.min(), rows.max() + 1, columns.min(), columns.max() + 1], np.float64)


def coloured(pixels: NDArray[np.int16], colour: tuple[int, int, int], within: int = 24) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (np.abs(pixels - np.array(colour)) <= within).all(axis=-1)
    return found


@dataclass
class Axial:
    """Where the voxels of the slice through the tumour lie on the stage: found by the outlines, checked by the rest."""

    labels: NDArray[np.uint8]
    k: int
    scale: tuple[float, float]
    zero: tuple[float, float]

    @classmethod
    def of(cls, shown: Shown, pixels: NDArray[np.int16]) -> Axial:
        labels = np.asarray(shown.labels().data)
        k = round(float(np.argwhere(labels == 2).mean(axis=0)[2]))
        hole = shown.phantom.volumes["ict_probe_mask"].as_mask()[:, :, k]
        top, bottom, left, right = box(sum(coloured(pixels, c) for c in (TUMOUR, LIVER, SYNTHETIC)) > 0)  # type: ignore[arg-type]
        i0, i1, j0, j1 = box((labels[:, :, k] > 0) | hole)
        # Radiological: the patient's right is on the left, anterior on top.
        scale = ((right - left) / (i1 - i0), (bottom - top) / (j1 - j0))
        return cls(labels, k, scale, (left + i1 * scale[0], top + j1 * scale[1]))

    def at(self, i: float, j: float) -> tuple[int, int]:
        """Row and column of a voxel's middle."""
        return round(self.zero[1] - (j + 0.5) * self.scale[1]), round(self.zero[0] - (i + 0.5) * self.scale[0])

    def compare(
        self, pixels: NDArray[np.int16], expected: NDArray[np.floating[Any]], side: slice = slice(None)
    ) -> float:
        """Median difference between what is shown in a part of the columns and what should be, 0 to 255."""
        shades, found = np.clip(expected[:, :, self.k], 0, 1) * 255, []
        for i in range(4, shades.shape[0] - 4):
            for j in range(4, shades.shape[1] - 4):
                near = shades[i - 1 : i + 2, j - 1 : j + 2]
                row, column = self.at(i, j)
                gray = np.ptp(pixels[row, column]) < 3
                if (
                    gray
                    and np.ptp(near) < 60
                    and 20 < near.mean() < 235
                    and column in range(*side.indices(pixels.shape[1]))
                ):
                    found.append(abs(float(pixels[row, column].mean()) - shades[i, j]))
        assert len(found) > 20
        return float(np.median(found))


def soft_tissue(hu: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    return (hu + 160.0) / 400.0


def test_tumour_outline_lies_where_the_tumour_is(case: Opened, shown: Shown) -> None:
    pixels = case.stage()
    axial = Axial.of(shown, pixels)
    assert axial.scale[0] == pytest.approx(axial.scale[1], rel=0.02)
    seen = box(coloured(pixels, TUMOUR))
    i0, i1, j0, j1 = box(axial.labels[:, :, axial.k] == 2)
    (top, left), (bottom, right) = axial.at(i1 - 0.5, j1 - 0.5), axial.at(i0 - 0.5, j0 - 0.5)
    np.testing.assert_allclose(seen, [top, bottom, left, right], atol=2)
    case.page.keyboard.press("c")
    assert not coloured(case.stage(), TUMOUR).any()
    case.page.keyboard.press("c")


def test_images_are_shown_in_their_windows(case: Opened, shown: Shown) -> None:
    ict = shown.phantom.volumes["ict"].as_float()
    axial = Axial.of(shown, case.stage())
    case.tick("above", "none")
    assert axial.compare(case.stage(), soft_tissue(ict)) < 4
    case.page.select_option("#window", "Bone")
    assert axial.compare(case.stage(), (ict - 400 + 900) / 1800) < 4
    case.page.select_option("#window", "Soft tissue")
    case.tick("below", "inpct")
    assert axial.compare(case.stage(), soft_tissue(shown.phantom.volumes["ict_clean"].as_float())) < 4
    expect(case.page.locator("#synthetic")).to_have_text("Inpainted voxels are synthetic")


def test_swipe_and_blend(case: Opened, shown: Shown) -> None:
    phantom = shown.phantom
    axial = Axial.of(shown, case.stage())
    level, width = (float(case.page.input_value(f"#mr-{name}")) for name in ("level", "width"))

    def shade(volume: Volume) -> NDArray[np.floating[Any]]:
        return (volume.as_float() - level + width / 2) / width

    mr = shade(warp(phantom.volumes["pmr"], phantom.fields["truth_field_ict_from_pmr"]))
    ct = soft_tissue(phantom.volumes["ict"].as_float())
    case.tick("mode", "swipe")
    pixels = case.stage()
    middle = pixels.shape[1] // 2
    assert axial.compare(pixels, ct, slice(0, middle - 4)) < 4
    assert axial.compare(pixels, mr, slice(middle + 4, None)) < 4
    case.tick("mode", "blend")
    both = (np.clip(ct, 0, 1) + np.clip(mr, 0, 1)) / 2
    assert axial.compare(case.stage(), both) < 5
    case.page.locator("#share").fill("100")
    assert axial.compare(case.stage(), mr) < 4
    case.tick("when", "before")
    before = case.stage()
    scanned = shade(resample(phantom.volumes["pmr"], phantom.volumes["ict"].geometry, fill=0.0))
    assert axial.compare(before, scanned) < min(4, axial.compare(before, mr))


@pytest.mark.parametrize("status", STATUSES)
def test_banner_has_the_colour_of_the_verdict(case: Opened, status: str) -> None:
    page = case.page
    for option in page.locator("#result option").all():
        page.select_option("#result", option.get_attribute("value"))
        page.wait_for_timeout(300)
        if page.locator("#verdict").get_attribute("class") == status:
            break
    shot = Image.open(io.BytesIO(page.locator("#verdict").screenshot())).convert("RGB")
    assert shot.getpixel((shot.width // 2, 4)) == STATUSES[status]
    text = page.locator("#verdict").inner_text()
    assert {"accept": "Accepted", "review": "REVIEW", "reject": "REJECTED: do not use"}[status] in text
    # A reject is also written on the images themselves, in red; an accept has neither stamp nor frame.
    stamped = coloured(case.stage()[-20:], STATUSES[status], within=3).mean()
    assert stamped > 0.3 if status != "accept" else stamped == 0


def test_what_is_said_of_the_tumour(case: Opened) -> None:
    cells = case.page.locator("#tumours tbody tr").first.locator("th, td").all_inner_texts()
    assert cells == ["tumour 1", "2.5 mm", *(f"{round(100 * share)} %" for share in MARGINS.values())]
    expect(case.page.locator("#facts")).to_contain_text("hepalign 7")


def test_keys_do_what_the_mouse_does(case: Opened) -> None:
    page, checked = case.page, lambda name: case.page.locator(f"input[name={name}]:checked").input_value()
    for key, name, value in (
        ("2", "plane", "coronal"), ("p", "above", "pct"), ("b", "when", "before"), ("i", "below", "inpct"),
        ("x", "mode", "swipe"), ("n", "above", "none"),
    ):  # fmt: skip
        page.keyboard.press(key)
        page.wait_for_timeout(300)
        assert checked(name) == value
    page.keyboard.press("1")
    page.focus("#stage")
    heights = []
    for _ in range(2):
        page.keyboard.press("ArrowUp")
        page.wait_for_timeout(300)
        heights.append(float(re.findall(r"-?\d+\.\d", page.locator("#readout").inner_text())[2]))
    assert heights[1] - heights[0] == pytest.approx(7.0, abs=0.11)
    page.click("summary:has-text('Keys')")
    page.uncheck("#keys")
    page.keyboard.press("3")
    assert checked("plane") == "axial"
    page.check("#keys")


def test_accessible(case: Opened) -> None:
    case.page.click("summary:has-text('Images of this case')")
    found = Axe().run(case.page).response["violations"]
    assert [(one["id"], [node["html"][:120] for node in one["nodes"]]) for one in found] == []


def test_running_job_tells_its_progress_and_shows_its_result(case: Opened, shown: Shown) -> None:
    page = case.page
    job = shown.add_job("guide", "running", step="register", progress=0.4, finished=None)
    page.click(f"text={shown.case[:10]}")
    expect(page.locator("#step")).to_contain_text("guide: register")
    assert float(page.locator("#progress").evaluate("bar => bar.value")) == pytest.approx(0.4)
    shown.change_job(job, step="warp", progress=0.8)
    expect(page.locator("#step")).to_contain_text("guide: warp")
    shown.change_job(job, state="succeeded", progress=1.0, finished=time.time(), result=result_of("reject"))
    expect(page.locator("#verdict")).to_have_class("reject")
    # The page still fetches the images that this job used; a job erased under it is another matter.
    expect(page.locator("#stage")).to_have_attribute("aria-busy", "false")
    with shown.records.write() as session:
        session.delete(session.get_one(Job, job))


def test_failed_job_says_why(case: Opened, shown: Shown) -> None:
    page = case.page
    page.click("#guide")
    expect(page.locator("#step")).to_contain_text("waiting")
    job = shown.queued()
    assert job is not None
    problem = {"code": "no_overlap", "status": 422, "detail": "the iCT and the pCT do not overlap"}
    shown.change_job(job, state="failed", problem=problem, finished=time.time())
    expect(page.locator("#message")).to_have_text("the iCT and the pCT do not overlap [no_overlap]")
    assert page.locator("#message").evaluate("line => getComputedStyle(line).backgroundColor") == f"rgb{RED}"


def test_dropped_files_and_a_dicom_folder_become_a_case(opened: Opened, shown: Shown, tmp_path: Path) -> None:
    page, volumes = opened.page, shown.phantom.volumes
    write_nifti(volumes["pmr"], tmp_path / "pmr.nii.gz")
    write_nifti(volumes["ict_probe_mask"], tmp_path / "ict_probe_mask.nii.gz")
    toy_dicom.write_dicom(volumes["ict"], tmp_path / "intraop ict")
    before = page.locator("#cases button").count()
    page.click("#new-case")
    page.wait_for_selector("#files", state="visible")
    page.set_input_files("#files", [tmp_path / "pmr.nii.gz", tmp_path / "ict_probe_mask.nii.gz"])
    page.set_input_files("#folder", tmp_path / "intraop ict")
    expect(page.locator("#waiting li")).to_have_count(3)
    roles = [select.input_value() for select in page.locator("#waiting select").all()]
    assert roles == ["pmr", "ict-probe-mask", "ict"]
    page.click("#send")
    expect(page.locator("#images tr")).to_have_count(3)
    expect(page.locator("#readout")).to_contain_text("HU")
    page.click("#erase")
    page.click("#sure button[value=erase]")
    expect(page.locator("#cases button")).to_have_count(before)
    expect(page.locator("#opened")).to_be_hidden()


def test_the_page_keeps_its_policy(case: Opened, shown: Shown) -> None:
    """Nothing from elsewhere, no token in an address, no complaint of the content security policy."""
    assert shown.token not in json.dumps(case.asked)
    assert all(url.startswith((shown.url, "blob:", "data:")) for url in case.asked)
    assert case.wrong == []


def test_wrong_token_is_told(browser: Browser, shown: Shown) -> None:
    page = browser.new_page()
    page.goto(shown.url)
    page.fill("#token", "nonsense")
    page.press("#token", "Enter")
    expect(page.locator("#message")).to_contain_text("[")
    expect(page.locator("main")).to_be_hidden()
    page.close()
