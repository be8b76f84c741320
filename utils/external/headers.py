"""Read a mammogram's facts from a DICOM header: patient, side, view, age, implant, machine, and what is missing.

Nothing is guessed: if two texts of a header contradict each other, neither counts. Patient Orientation (0020,0020) is
not used, since it gives the side only if the image is known to hang as PS3.3 asks.

References: DICOM PS3.3 C.8.11.7 (Mammography Image), PS3.16 CID 4014 (views) and CID 4015 (their modifiers).
"""

import contextlib
import re
import warnings
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
from pydicom.multival import MultiValue
from pydicom.uid import UID

from utils.dicom.file import DicomError, open_dicom
from utils.dicom.header import MAGIC, PREAMBLE, begins_like_dicom

# Codes of CID 4014 in SNOMED CT, and in its older form SRT; the names are those of the ACR's manual of 1999.
VIEW_CODES = {
    "399162004": "CC", "R-10242": "CC", "399368009": "MLO", "R-10226": "MLO",
    "399260004": "ML", "R-10224": "ML", "399352003": "LM", "R-10228": "LM", "399099002": "LMO", "R-10230": "LMO",
    "399196006": "FB", "R-10244": "FB", "399188001": "SIO", "R-102D0": "SIO", "441555000": "ISO", "R-40AAA": "ISO",
    "399192008": "XCCL", "R-1024A": "XCCL", "Y-X1770": "XCCL", "399101009": "XCCM", "R-1024B": "XCCM", "Y-X1771": "XCCM",
}  # fmt: skip
AXILLARY_TAIL = ("399011000", "R-102D1")  # CID 4015; RSNA's view AT
SPECIMEN = ("127457009", "G-8310")  # CID 4014: excised tissue
VIEWS = {*VIEW_CODES.values(), "AT", "CV", "XCC"}
SPELLED_VIEWS = (  # the longer names first
    (r"CRANIO[- ]?CAUDAL,? EXAGGERATED LATERAL", "XCCL"),
    (r"CRANIO[- ]?CAUDAL,? EXAGGERATED MEDIAL", "XCCM"),
    (r"MEDIO[- ]?LATERAL[- ]OBLIQUE", "MLO"),
    (r"LATERO[- ]?MEDIAL[- ]OBLIQUE", "LMO"),
    (r"CRANIO[- ]?CAUDAL", "CC"),
    (r"MEDI(?:O|AL)[- ]?LATERAL", "ML"),
    (r"LATERO[- ]?MEDIAL", "LM"),
)
# "MLO", "LMLO", "R_CC2", "RCCID" (implant displaced). "LAT" is not a left axillary tail, so AT is not among them.
VIEW_WORD = re.compile(r"([LR]?)(XCCL|XCCM|XCC|CC|MLO|LMO|ML|LM)(?:ID)?\d?")
SIDES = {"L": "L", "LEFT": "L", "R": "R", "RIGHT": "R"}
SIDES_BY_A_VIEW = {"L": "L", "LT": "L", "R": "R", "RT": "R"}  # too short to mean a side anywhere else
DESCRIPTIONS = ("SeriesDescription", "ProtocolName", "AcquisitionProtocolName", "ImageComments")
NO_PATIENT = {"ANON", "ANONYMISED", "ANONYMIZED", "ANONYMOUS", "DEIDENTIFIED", "NONE", "REMOVED", "UNKNOWN"}
DATES = ("StudyDate", "AcquisitionDate", "SeriesDate", "ContentDate")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")  # must not get into a CSV
LONGEST_LIFE = 120  # years
AGE_UNITS = {"Y": 1, "M": 12, "W": 52.18, "D": 365.25}  # units per year
XRAY = "1.2.840.10008.5.1.4.1.1.1"  # Computed Radiography
MAMMOGRAPHY = {f"{XRAY}.2", f"{XRAY}.2.1"}
RADIOGRAPHY = {XRAY, f"{XRAY}.1", f"{XRAY}.1.1"}  # RSNA's files are Digital X-Ray images
FOR_PROCESSING = {f"{XRAY}.2.1", f"{XRAY}.1.1"}
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
DIGITISED_FILM = "DF"  # Conversion Type (0008,0064)
TAGS = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "Modality", "ConversionType", "PresentationIntentType", "ImageType",
    "NumberOfFrames", "PatientID", "IssuerOfPatientID", "PatientAge", "PatientBirthDate", "ImageLaterality", "Laterality",
    "ViewPosition", "ViewCodeSequence", "BodyPartExamined", "BreastImplantPresent", "Manufacturer", "ManufacturerModelName",
    "InstitutionName", "SpecificCharacterSet", *DESCRIPTIONS, *DATES,
]  # fmt: skip


@dataclass
class Facts:
    """What one file's header states; unknown values are empty, age NaN, implant None.

    ``file`` is the path below the folder that was searched, with "/". ``patient`` is also empty for a word such as
    ANONYMOUS. ``laterality`` is L, R, B (both breasts) or empty. ``for_processing`` means raw values, from which the
    machine makes the image for viewing. ``taken_from`` names the element that gave the side or view, if it is not the
    usual one. ``left_out`` is the reason why the kit can't use the file, else empty. ``is_other_kind`` means left out
    for its Modality or class alone, so that the user may still take it.
    """

    file: str
    patient: str = ""
    issuer: str = ""
    study: str = ""
    instance: str = ""
    birth_date: str = ""
    laterality: str = ""
    view: str = ""
    age: float = np.nan
    implant: int | None = None
    machine: str = ""
    institution: str = ""
    for_processing: bool = False
    taken_from: dict[str, str] = field(default_factory=dict)
    left_out: str = ""
    is_other_kind: bool = False
    notes: list[str] = field(default_factory=list)


def read_facts(path: Path, name: str) -> Facts | None:
    """Read the header of any file, called ``name`` in `Facts.file`; return None if the file is not DICOM."""
    try:
        with open(path, "rb") as file:
            head = file.read(PREAMBLE + len(MAGIC))
    except OSError as error:
        return Facts(name, left_out=f"it can't be opened ({error.strerror})")
    if not begins_like_dicom(head):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about values that break their type's rules; those that matter are checked here
        try:
            header = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=TAGS)
            return _facts_of(header, path, name)
        except Exception as error:  # broken headers raise anything
            return Facts(name, left_out=f"its header can't be read ({type(error).__name__}: {error})")


def _facts_of(header: pydicom.Dataset, path: Path, name: str) -> Facts:
    facts = Facts(
        name,
        patient=_patient(header),
        issuer=_text(header, "IssuerOfPatientID"),
        study=_text(header, "StudyInstanceUID"),
        instance=_text(header, "SOPInstanceUID"),
        birth_date=_text(header, "PatientBirthDate"),
        age=age_of(header),
        implant={"YES": 1, "NO": 0}.get(_text(header, "BreastImplantPresent").upper()),
        machine=_text(header, "ManufacturerModelName") or _text(header, "Manufacturer"),
        institution=_text(header, "InstitutionName"),
        for_processing=_is_for_processing(header),
    )
    _add_side_and_view(facts, header)
    facts.left_out = _not_a_mammogram(header) or _undecodable(path)
    if not facts.left_out:
        facts.left_out = _other_kind(header)
        facts.is_other_kind = bool(facts.left_out)
    return facts


def _text(header: pydicom.Dataset, keyword: str) -> str:
    """Return an element's value as text; empty if it is absent or broken."""
    try:
        value = header.get(keyword)
    except Exception:  # pydicom converts a value only when it is read
        return ""
    if value is None:
        return ""
    text = "\\".join(str(item) for item in value) if isinstance(value, MultiValue) else str(value)
    return CONTROL.sub("\ufffd", text.strip(" \0\n\r\t"))


def _codes(header: pydicom.Dataset, keyword: str) -> list[pydicom.Dataset]:
    try:
        return list(header.get(keyword) or ())
    except Exception:
        return []


def _patient(header: pydicom.Dataset) -> str:
    text = _text(header, "PatientID")
    return "" if re.sub(r"[^A-Z]", "", text.upper()) in NO_PATIENT else text


def age_of(header: pydicom.Dataset) -> float:
    """Return the age in years: Patient's Age (0010,1010), else from the dates of birth and study; NaN if unknown.

    0 counts as unknown: anonymisers write it.
    """
    found = re.fullmatch(r"(\d{1,3})([DWMY])?", _text(header, "PatientAge").upper())
    born = _date(_text(header, "PatientBirthDate"))
    taken = next((date for keyword in DATES if (date := _date(_text(header, keyword)))), None)
    years = 0
    if found:
        years = int(int(found[1]) / AGE_UNITS[found[2] or "Y"])
    elif born and taken:
        years = taken.year - born.year - ((taken.month, taken.day) < (born.month, born.day))
    return float(years) if 0 < years <= LONGEST_LIFE else np.nan


def _date(text: str) -> datetime | None:
    with contextlib.suppress(ValueError):
        return datetime.strptime(text, "%Y%m%d")
    return None


def _is_for_processing(header: pydicom.Dataset) -> bool:
    intent = _text(header, "PresentationIntentType").upper()
    return intent == "FOR PROCESSING" or (not intent and _sop_class(header) in FOR_PROCESSING)


def _sop_class(header: pydicom.Dataset) -> str:
    return _text(header, "SOPClassUID") or _text(header.file_meta, "MediaStorageSOPClassUID")


# Side and view
# -------------


def side_and_view(text: str) -> tuple[str, str]:
    """Return the side (L or R) and the view that a text such as "R MLO", "LCC" or "Left cranio-caudal" names.

    Each is empty if the text names none or several. ML and LM count only together with a side: they may be a volume or
    initials.
    """
    text = text.upper()
    spelled = next((view for pattern, view in SPELLED_VIEWS if re.search(pattern, text)), "")
    words = re.findall(r"[A-Z0-9]+", text)
    matches = [match for match in map(VIEW_WORD.fullmatch, words) if match]
    views = {spelled} if spelled else {match[2] for match in matches}
    sides = {match[1] for match in matches if match[1]}
    sides |= {SIDES[word] for word in words if word in SIDES and len(word) > 1}
    if views:
        sides |= {SIDES_BY_A_VIEW[word] for word in words if word in SIDES_BY_A_VIEW}
    if "BILATERAL" in words or "BOTH" in words:
        sides = {"L", "R"}
    side = sides.pop() if len(sides) == 1 else ""
    view = views.pop() if len(views) == 1 else ""
    if view in ("ML", "LM") and not side and not spelled:
        view = ""
    return side, view


def _add_side_and_view(facts: Facts, header: pydicom.Dataset) -> None:
    """Set side and view from the elements made for them, else from descriptions if these agree."""
    told = {keyword: side_and_view(_text(header, keyword)) for keyword in ("ViewPosition", *DESCRIPTIONS)}
    facts.laterality = _declared_side(header)
    sides = {keyword: side for keyword, (side, _) in told.items() if side}
    if not facts.laterality and len({*sides.values()}) == 1:
        facts.taken_from["laterality"], facts.laterality = next(iter(sides.items()))
    elif {*sides.values()} - {facts.laterality}:
        says = ", ".join(f"{keyword} says {side}" for keyword, side in sides.items())
        facts.notes.append(f"the side is uncertain: laterality is {facts.laterality or 'empty'}, {says}")
    facts.view, view_position = _coded_view(header), _text(header, "ViewPosition").upper()
    if view_position in VIEWS and facts.view != "AT":
        facts.view = view_position
    views = {keyword: view for keyword, (_, view) in told.items() if view}
    if not facts.view and len({*views.values()}) == 1:
        facts.taken_from["view"], facts.view = next(iter(views.items()))


def _declared_side(header: pydicom.Dataset) -> str:
    for keyword in ("ImageLaterality", "Laterality"):
        side = _text(header, keyword).upper()
        if side in ("L", "R", "B", "LEFT", "RIGHT"):
            return side[0]
    return ""


def _coded_view(header: pydicom.Dataset) -> str:
    for item in _codes(header, "ViewCodeSequence"):
        modifiers = [_text(modifier, "CodeValue") for modifier in _codes(item, "ViewModifierCodeSequence")]
        if any(code in AXILLARY_TAIL for code in modifiers):
            return "AT"
        view = VIEW_CODES.get(_text(item, "CodeValue")) or side_and_view(_text(item, "CodeMeaning"))[1]
        if view:
            return view
    return ""


# What is not a mammogram
# -----------------------


def _not_a_mammogram(header: pydicom.Dataset) -> str:
    """Return why a file can't be a single mammogram; empty if it may be."""
    sop_class = _sop_class(header)
    frames = _text(header, "NumberOfFrames") or "1"
    if sop_class and sop_class not in MAMMOGRAPHY | RADIOGRAPHY | {SECONDARY_CAPTURE}:
        return f"it is not a mammogram but {UID(sop_class).name}"
    if frames.strip() not in ("0", "1"):
        return f"it has {frames} frames (tomosynthesis, or a film): only single images are read"
    if "LOCALIZER" in _text(header, "ImageType").upper():
        return "it is a localizer (Image Type)"
    if any(_text(item, "CodeValue") in SPECIMEN for item in _codes(header, "ViewCodeSequence")):
        return "it shows a specimen, not a breast (View Code Sequence)"
    return ""


def _other_kind(header: pydicom.Dataset) -> str:
    """Return what kind of image it is if that is not usually a mammogram, else an empty string."""
    modality, part = _text(header, "Modality").upper(), _text(header, "BodyPartExamined").upper()
    if modality not in ("", "MG") and "BREAST" not in part:
        return f"its Modality is {modality}, not MG"
    if _sop_class(header) == SECONDARY_CAPTURE and _text(header, "ConversionType").upper() != DIGITISED_FILM:
        return "it is a secondary capture, so it may be a screenshot"
    return ""


def _undecodable(path: Path) -> str:
    try:
        with open_dicom(path):
            return ""
    except DicomError as error:
        return error.reason
