"""Facts about reading JSON into dataclasses: what is refused, and how the message names it."""

import json
import math
from dataclasses import dataclass, field

import pytest

from utils.core.errors import KitError
from utils.core.files import read_json
from utils.core.formats import FormatError, as_object, build, check_types, naming, shown


@dataclass(frozen=True)
class Inner:
    size: int

    def __post_init__(self):
        check_types(self)


@dataclass(frozen=True)
class Outer:
    share: float
    names: tuple[str, ...] = ()
    inner: Inner | None = None
    counts: dict[str, int] = field(default_factory=dict)
    on: bool = False
    limit: int | None = None

    def __post_init__(self):
        check_types(self)


def test_what_was_written_is_built_again():
    content = json.loads('{"share": 1, "names": ["a"], "inner": {"size": 2}, "counts": {"x": 3}, "on": true, "limit": null}')
    assert build(Outer, content) == Outer(1, ("a",), Inner(2), {"x": 3}, True, None)
    assert build(Outer, {"share": 0.5}) == Outer(0.5)


@pytest.mark.parametrize("value", [math.nan, math.inf, 10**400, "1", True, None, [1], {}])
def test_a_number_is_finite_and_nothing_else(value):
    with pytest.raises(FormatError, match=r"^share is .* but must be a finite number\.$"):
        build(Outer, {"share": value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": "a"}, "names is 'a', but must be a list of text"),
        ({"names": ["a", 1]}, "names is .* but must be a list of text"),
        ({"counts": {"x": 1.5}}, "counts is .* but must be an object of whole numbers"),
        ({"counts": []}, "counts is "),
        ({"on": 1}, "on is 1, but must be true or false"),
        ({"limit": True}, "limit is True, but must be a whole number or null"),
        ({"inner": 5}, "inner: it contains 5, but must contain an object"),
        ({"inner": [1]}, "inner is "),
        ({"inner": {}}, "inner: it lacks fields .*size"),
        ({"inner": {"size": 2.0}}, "inner: size is 2.0, but must be a whole number"),
        ({"extra": 1, "more": 2}, "does not know .*extra, more"),
    ],
)
def test_the_field_of_a_wrong_value_is_named(change, message):
    with pytest.raises(KitError, match=message):
        build(Outer, {"share": 0.5} | change)


def test_fields_that_lack_are_named():
    with pytest.raises(FormatError, match=r"it lacks fields that this version of the kit needs \(share\)"):
        build(Outer, {})


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "null", '"text"', "3", "\ufeff{}", "[" * 100_000])
def test_a_file_that_holds_no_object_is_refused_by_its_name(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(KitError, match=rf"^{path}.* Do this\.$"), naming(path, KitError, "Do this."):
        as_object(read_json(path))
    path.write_bytes(b"\xff\xfe{\x00")
    with pytest.raises(KitError, match=rf"^{path} can't be read"), naming(path, KitError, "Do this."):
        as_object(read_json(path))


def test_a_long_value_is_cut_in_the_message():
    assert len(shown("x" * 10_000)) < 100
