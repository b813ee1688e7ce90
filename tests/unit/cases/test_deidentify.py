from __future__ import annotations

import pytest
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
