"""Facts about parameters cells: what is read from an edited one, and that writing a value changes nothing else."""

import ast

import pytest

from utils.core.parameters import ParameterError
from utils.kaggle.parameter_cells import convert_values, default_values, read_values, write_values

CELL = """# Usually changed
architecture: str = "resnet50"  # a network: cnn, größer, …
recipe: str = ""  # name=value pairs
epochs: int = 8  # passes
learning_rate: float = 3e-4
metadata: bool = False
max_views: int = None  # None: all
folder: str = (
    None
)
"""


def test_a_value_is_written_without_touching_the_rest_of_the_cell():
    written = write_values(CELL, {"recipe": 'strong mixup=0.4 "ü"', "epochs": 12, "max_views": 4, "folder": "a"})
    assert read_values(written) == default_values(CELL) | {
        "recipe": 'strong mixup=0.4 "ü"',
        "epochs": 12,
        "max_views": 4,
        "folder": "a",
    }
    assert "epochs: int = 12  # passes\n" in written and "max_views: int = 4  # None: all\n" in written
    assert write_values(written, {"recipe": "", "epochs": 8, "max_views": None, "folder": None}) == CELL


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("architecture", "convnext_small_in22k", "convnext_small_in22k"),
        ("recipe", "strong mixup=0.4", "strong mixup=0.4"),
        ("epochs", "12", 12),
        ("learning_rate", "1e-3", 1e-3),
        ("metadata", "true", True),
        ("max_views", "4", 4),
        ("max_views", "None", None),
        ("folder", None, None),
    ],
)
def test_a_value_gets_the_type_that_the_cell_declares(name, given, value):
    (converted,) = convert_values(CELL, {name: given}).values()
    assert converted == value and type(converted) is type(value)


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("epochs", "a few", "epochs is 'a few', but must be a whole number"),
        ("epochs", "None", "epochs is 'None', but must be a whole number"),
        ("metadata", "yes", "metadata is 'yes', but must be true or false"),
        ("max_views", "all", "max_views is 'all', but must be a whole number"),
        ("architectur", "cnn", "There is no parameter architectur. The nearest name is architecture."),
        ("zzzz", "1", "There is no parameter zzzz. Known names: architecture, recipe"),
    ],
)
def test_an_unknown_name_or_a_wrong_type_is_refused(name, given, told):
    with pytest.raises(ParameterError) as caught:
        convert_values(CELL, {name: given})
    assert told in str(caught.value)


def test_an_edited_cell_is_read_whatever_the_form_of_its_assignments():
    edited = CELL.replace("= 8", "= -8") + "epochs = 20\nlist_of_mine = [1, 2]\n"
    assert read_values(edited) == default_values(CELL) | {"epochs": 20, "list_of_mine": [1, 2]}


@pytest.mark.parametrize("line", ["import os", "epochs += 1", "epochs = 2 * 4", "a = b = 1", "epochs = ", "x: int"])
def test_what_is_no_plain_assignment_can_not_be_carried_over(line):
    with pytest.raises(ParameterError, match="NAME = VALUE|can't be read"):
        read_values(CELL + line)


def test_texts_with_quotes_backslashes_and_line_ends_survive():
    for text in ('"', "'", "\\", "a\nb", "\u2028", "\x00"):
        assert ast.literal_eval(ast.parse(write_values('x: str = ""', {"x": text})).body[0].value) == text
