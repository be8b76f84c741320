"""Headers as machines and archives write them: full, poor, contradictory and broken."""

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from tests.external.test_convert import write_dicom
from utils.external.headers import age_of, read_facts, side_and_view

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom.valuerep")  # headers that break the rules
DIGITAL_XRAY = "1.2.840.10008.5.1.4.1.1.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
TOMOSYNTHESIS = "1.2.840.10008.5.1.4.1.1.13.1.3"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def reason(tmp_path, **elements):
    """Why a file with these elements is left out; empty if it is not."""
    usual = {"PatientID": "P1", "ImageLaterality": "L", "ViewPosition": "CC", "Modality": "MG"}
    write_dicom(tmp_path / "one", **usual | elements)
    return read_facts(tmp_path / "one", "one").left_out


def header(**elements):
    dataset = Dataset()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


@pytest.mark.parametrize(
    "text, side, view",
    [
        ("R MLO", "R", "MLO"),
        ("LCC", "L", "CC"),
        ("Mammo_L-CC 2", "L", "CC"),
        ("LEFT MEDIOLATERAL OBLIQUE", "L", "MLO"),
        ("cranio-caudal", "", "CC"),
        ("RXCCL", "R", "XCCL"),
        ("RMLOID", "R", "MLO"),
        ("LLM", "L", "LM"),
        ("LT ML", "L", "ML"),
        ("Right breast", "R", ""),
        ("R CC and L CC", "", "CC"),
        ("CC and MLO", "", ""),
        ("Bilateral CC, right first", "", "CC"),
        ("LAT", "", ""),
        ("contrast 10 ml", "", ""),
        ("R2 ImageChecker", "", ""),
        ("post RT", "", ""),
        ("Vitamin L", "", ""),
        ("", "", ""),
    ],
)
def test_side_and_view_are_read_from_a_description_that_names_one_of_each(text, side, view):
    assert side_and_view(text) == (side, view)


@pytest.mark.parametrize(
    "elements, view",
    [
        ({"ViewPosition": "xccl"}, "XCCL"),
        ({"view": "R-10226"}, "MLO"),
        ({"view": "399260004"}, "ML"),
        ({"ViewPosition": "LATERAL", "view": "399099002"}, "LMO"),
        ({"ViewPosition": "LATERAL"}, ""),
        ({"ViewPosition": "RMLO"}, "MLO"),
    ],
)
def test_view_comes_from_its_position_or_its_code(tmp_path, elements, view):
    write_dicom(tmp_path / "one", **elements)
    assert read_facts(tmp_path / "one", "one").view == view


def test_axillary_tail_is_a_modifier_of_the_view(tmp_path):
    write_dicom(tmp_path / "one", view="399368009", ViewPosition="MLO")
    dataset = pydicom.dcmread(tmp_path / "one")
    dataset.ViewCodeSequence[0].ViewModifierCodeSequence = [header(CodeValue="R-102D1")]
    dataset.save_as(tmp_path / "one")
    assert read_facts(tmp_path / "one", "one").view == "AT"


@pytest.mark.parametrize(
    "elements, age",
    [
        ({"PatientAge": "055Y"}, 55),
        ({"PatientAge": "600M"}, 50),
        ({"PatientAge": "000Y"}, np.nan),
        ({"PatientAge": "old"}, np.nan),
        ({"PatientBirthDate": "19600315", "StudyDate": "20240314"}, 63),
        ({"PatientBirthDate": "19600315", "ContentDate": "20240315"}, 64),
        ({"PatientBirthDate": "19600315"}, np.nan),
        ({"PatientBirthDate": "18000101", "StudyDate": "20240101"}, np.nan),
        ({}, np.nan),
    ],
)
def test_age_is_told_or_follows_from_two_dates(elements, age):
    assert age_of(header(**elements)) == pytest.approx(age, nan_ok=True)


@pytest.mark.parametrize(
    "elements, why",
    [
        ({"SOPClassUID": CT, "Modality": "CT"}, "it is not a mammogram but CT Image Storage"),
        ({"SOPClassUID": TOMOSYNTHESIS}, "not a mammogram but Breast Tomosynthesis"),
        ({"NumberOfFrames": 50}, "50 frames"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"view": "127457009"}, "specimen"),
        ({"SOPClassUID": DIGITAL_XRAY, "Modality": "DX", "BodyPartExamined": "CHEST"}, "its Modality is DX, not MG"),
        ({"SOPClassUID": DIGITAL_XRAY, "Modality": "DX", "BodyPartExamined": "BREAST"}, ""),
        ({"SOPClassUID": SECONDARY_CAPTURE}, "secondary capture"),
        ({"SOPClassUID": SECONDARY_CAPTURE, "ConversionType": "DF"}, ""),
        ({"SamplesPerPixel": 3}, "3 samples per pixel"),
        ({"Modality": ""}, ""),
    ],
)
def test_what_is_no_mammogram_is_left_out_with_the_reason(tmp_path, elements, why):
    found = reason(tmp_path, **elements)
    assert why in found and bool(why) == bool(found)


def test_no_broken_header_ends_the_conversion(tmp_path):
    told = {"PatientID": "P1", "ImageLaterality": "L", "PatientBirthDate": "19600101", "StudyDate": "20240101"}
    write_dicom(tmp_path / "whole", view="R-10226", Modality="MG", **told)
    content = (tmp_path / "whole").read_bytes()
    start, random = 128, np.random.default_rng(0)
    for number in range(200):
        mutated = bytearray(content)
        for place in random.integers(start, len(content) - 96 * 64, 3):
            mutated[place] = random.integers(256)
        (tmp_path / "one").write_bytes(mutated[: random.integers(200, len(content))] if number % 4 == 0 else mutated)
        facts = read_facts(tmp_path / "one", "one")
        assert facts is None or facts.left_out or facts.laterality in ("L", "R", "B", "")
