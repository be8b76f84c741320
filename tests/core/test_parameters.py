"""Facts about parameters: what papermill passes becomes what the parameters cell declares, or is refused by its name."""

import json

import pytest

from tests.helpers import NOTEBOOKS
from utils.core.parameters import ParameterError, read_parameters

DECLARED = 'hard: bool = True\nepochs: int = 0  # 0: 8\nlearning_rate: float = 3e-4\nrun_dirs: str = ""'


def run_cells(*sources):
    """A notebook's namespace after its cells ran."""
    namespace = {"In": ["", *sources, "read_parameters(globals())"]}
    for source in sources:
        exec(source, namespace)
    return namespace


def passed(name, value):
    """A parameter as `read_parameters` leaves it, where papermill adds a cell that sets it."""
    namespace = run_cells(DECLARED, f"# Parameters\n{name} = {value!r}\n", "import sys\nkaggle = sys.path")
    parameters = read_parameters(namespace)
    assert namespace[name] == parameters.values[name]
    return parameters.values[name]


@pytest.mark.parametrize("text", ["false", "False", "FALSE", "fAlse", False])
def test_false_in_any_case_is_false(text):
    assert passed("hard", text) is False
    assert passed("hard", str(not text) if text is False else text.lower().replace("false", "true")) is True


@pytest.mark.parametrize("value", [0, 1, 0.0, "0", "1", "no", "yes", "off", "", "null", "None", None, "fals", [False]])
def test_what_is_neither_true_nor_false_is_refused(value):
    with pytest.raises(ParameterError, match="hard is .* must be true or false"):
        passed("hard", value)


@pytest.mark.parametrize(
    "name, value, wanted",
    [
        ("epochs", "3", 3),
        ("epochs", 3.0, 3),
        ("epochs", "1e1", 10),
        ("epochs", 2**60 + 1, 2**60 + 1),
        ("learning_rate", "1e-4", 1e-4),
        ("learning_rate", 1, 1.0),
        ("run_dirs", 0, "0"),
        ("run_dirs", [0, "runs/b"], "0,runs/b"),
        ("run_dirs", "3.5", "3.5"),
    ],
)
def test_value_becomes_the_declared_type(name, value, wanted):
    found = passed(name, value)
    assert found == wanted and type(found) is type(wanted)


@pytest.mark.parametrize(
    "name, value",
    [
        *(("epochs", value) for value in ("abc", 3.5, "3.5", True, None, "null", "", "inf", [3])),
        *(("learning_rate", value) for value in ("fast", True, None, "nan", "inf", "1e999", [1e-4])),
        *(("run_dirs", value) for value in (None, "null", "None", 2024.1, True, [None], {"a": 1})),
    ],
)
def test_value_of_another_type_is_refused_by_name(name, value):
    with pytest.raises(ParameterError, match=f"{name} is .* must be "):
        passed(name, value)


def test_text_that_python_can_not_write_as_a_literal_is_refused_too():
    with pytest.raises(ParameterError, match="learning_rate is nan"):
        read_parameters(run_cells(DECLARED, "learning_rate = float('nan')"))


@pytest.mark.parametrize(
    "name, nearest", [("epoch", "epochs"), ("Epochs", "epochs"), ("learn", "learning_rate"), ("run_dir", "run_dirs")]
)
def test_name_that_does_not_exist_is_refused_with_the_nearest(name, nearest):
    with pytest.raises(ParameterError, match=f"no parameter {name} in this notebook. The nearest name is {nearest}"):
        read_parameters(run_cells(DECLARED, f"{name} = 3", "import sys"))
    with pytest.raises(ParameterError, match=f"no parameter {name} "):  # written into the parameters cell by hand
        read_parameters(run_cells(f"{DECLARED}\n{name} = 3", "import sys"))


@pytest.mark.parametrize(("name", "value"), [("num_workers", -2), ("num_workers", 2000), ("seed", -1), ("seed", 2**32)])
def test_number_out_of_its_range_is_refused(name, value):
    declared = "num_workers: int = -1  # one a core\nseed: int = 0"
    assert read_parameters(run_cells(declared)).values["num_workers"] == -1
    with pytest.raises(ParameterError, match=f"{name} is {value}, but must be from 0 to"):
        read_parameters(run_cells(declared, f"# Parameters\n{name} = {value}\n"))


def test_name_that_is_like_none_is_refused_with_all_names():
    with pytest.raises(ParameterError, match="no parameter xyz .* are hard, epochs, learning_rate, run_dirs"):
        read_parameters(run_cells(DECLARED, "xyz = 3"))


def test_all_problems_are_told_at_once():
    with pytest.raises(ParameterError) as caught:
        read_parameters(run_cells(DECLARED, "epoch = 3\nhard = 'no'\nlearning_rate = 'x'"))
    lines = str(caught.value).splitlines()
    assert [line[:2] for line in lines[1:]] == ["1.", "2.", "3."]
    for line, name in zip(lines[1:], ("epoch", "hard", "learning_rate"), strict=True):
        assert name in line


def test_cells_of_earlier_runs_do_not_count():
    """In Jupyter, In keeps cells that were corrected since."""
    again = [DECLARED, "epoch = 3", "import sys", "total = epochs + 1"]
    with pytest.raises(ParameterError):
        read_parameters(run_cells(*again))
    assert read_parameters(run_cells(*again, "epochs = 3")).values["epochs"] == 3
    assert read_parameters(run_cells(*again, DECLARED)).values["epochs"] == 0
    broken = run_cells(*again, DECLARED)
    broken["In"].append("epochs = = 3")
    assert read_parameters(broken).values["epochs"] == 0


def test_parameter_whose_default_is_none_may_be_none_or_of_its_type():
    declared = "epochs: int = None\nfolds: str = None\nhard: bool = None"
    for given, expected in [("None", None), (None, None), ("3", 3), (0, 0)]:
        assert read_parameters(run_cells(declared, f"epochs = {given!r}")).values["epochs"] == expected
    values = read_parameters(run_cells(declared, "hard = 'false'\nfolds = '0,1'")).values
    assert values == {"epochs": None, "folds": "0,1", "hard": False}
    with pytest.raises(ParameterError, match="epochs is 'few', but must be a whole number"):
        read_parameters(run_cells(declared, "epochs = 'few'"))


def test_setting_that_belongs_into_recipe_is_refused_with_the_way_to_set_it():
    cells = run_cells("recipe: str = ''", "mixup = 0.4\nmixop = 0.4")
    with pytest.raises(ParameterError) as caught:
        read_parameters(cells, in_recipe=["mixup"])
    first, second = str(caught.value).splitlines()[1:]
    assert "-p recipe 'mixup=VALUE'" in first and "no parameter mixop in this notebook. The nearest name is mixup." in second


def test_script_without_cells_is_checked_by_its_annotations():
    namespace = {"__annotations__": {"hard": bool}, "hard": "false"}
    assert read_parameters(namespace).values == {"hard": False}
    assert namespace["hard"] is False


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_defaults_of_each_notebook_are_of_their_types_and_checked_before_use(path):
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in cells]
    namespace = run_cells(sources[0])
    before = dict(namespace)
    parameters = read_parameters(namespace)
    assert parameters.values == parameters.defaults and len(parameters.values) == sum(
        not line.startswith("#") for line in sources[0].splitlines()
    )
    assert {name: type(before[name]) for name in parameters.values} == {n: type(v) for n, v in parameters.values.items()}
    assert [cell["id"] for cell in cells[:3]] == ["parameters", "root", "checked-parameters"]
    assert not set(parameters.values) & set(sources[1].replace("(", " ").replace(")", " ").split())
