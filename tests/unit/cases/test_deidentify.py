from __future__ import annotations

import io
import re
from pathlib import Path

import pydicom
import pytest
from pydicom import config as pydicom_config
from pydicom.dataset import Dataset

from hepalign.cases.deidentify import KEPT, check_pseudonyms, kept_attributes
from hepalign.errors import BadInputError


def header() -> Dataset:
    dataset = Dataset()
    dataset.PatientID, dataset.PatientName, dataset.PatientBirthDate = "4711-0815", "Mustermann^Erika", "19640812"
    dataset.StudyDate, dataset.InstitutionName, dataset.DeviceSerialNumber = "20190801", "Charité", "12345"
    dataset.StudyDescription, dataset.ProtocolName = "Leber Mustermann", "Leber"
    dataset.Modality, dataset.PatientPosition = "MR", "HFDL"
    dataset.RepetitionTime, dataset.FlipAngle, dataset.EchoTime = "4.5", "12", None
    dataset.ScanningSequence = ["GR", "SE"]
    return dataset


def test_only_the_list_is_kept() -> None:
    assert kept_attributes(header()) == {
        "Modality": "MR",
        "PatientPosition": "HFDL",
        "ScanningSequence": "GR\\SE",
        "RepetitionTime": 4.5,
        "FlipAngle": 12.0,
    }


def test_nothing_personal_is_on_the_list() -> None:
    telling = ("Name", "Date", "Time_", "Institution", "Description", "Comment", "UID", "ID", "Serial", "Address")
    assert not [word for word in KEPT if any(part in word for part in telling)]
    assert "PatientAge" not in KEPT


def test_free_text_in_a_code_is_left_out() -> None:
    dataset = header()
    dataset["PatientPosition"]._value = "Erika Mustermann, 55"
    assert "PatientPosition" not in kept_attributes(dataset)


@pytest.mark.parametrize("word", ["4711-0815", "case-MUSTERMANN", "erika1", "x19640812"])
def test_ids_that_tell_who_it_is_are_refused(word: str) -> None:
    with pytest.raises(BadInputError) as error:
        check_pseudonyms(("fine", word), header())
    assert error.value.code == "identifying_id"
    assert word not in error.value.message


def test_pseudonyms_pass() -> None:
    check_pseudonyms(("case-001", "p7"), header())
    check_pseudonyms(("case-001", "p7"), Dataset())


@pytest.mark.parametrize(("keyword", "value"), [("PatientPosition", "MUSTERMANN"), ("ScanOptions", ["FS", "ERIKA"])])
def test_a_name_that_looks_like_a_code_is_left_out(keyword: str, value: object) -> None:
    dataset = header()
    setattr(dataset, keyword, value)
    assert keyword not in kept_attributes(dataset)


def test_a_number_that_is_none_is_left_out() -> None:
    dataset = header()
    dataset["RepetitionTime"]._value = "Mustermann"
    dataset["FlipAngle"]._value = float("nan")
    assert set(kept_attributes(dataset)) == {"Modality", "ScanningSequence", "PatientPosition"}


def test_the_reference_lists_what_is_kept(root: Path) -> None:
    page = (root / "docs/reference/deidentification.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert {word for row in rows for word in re.findall(r"`(\w+)`", row)} == set(KEPT)


def test_what_is_invalid_is_not_quoted_in_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    with pydicom_config.disable_value_validation():
        dataset = header()
        dataset.PatientBirthDate = "12. August 1964 (Erika)"
        dataset.PatientID = "Mustermann " * 9
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, dataset, implicit_vr=True, little_endian=True, enforce_file_format=False)
    read = pydicom.dcmread(io.BytesIO(buffer.getvalue()), force=True)
    kept_attributes(read)
    check_pseudonyms(["case-1"], read)
    assert [str(warning.message) for warning in recwarn.list] == []
