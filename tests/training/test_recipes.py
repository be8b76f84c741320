"""Facts about recipes: each trains."""

import pytest

from tests.runs.test_plan import DECLARED
from utils.core import folders
from utils.runs.plan import make_plan
from utils.runs.recipes import RECIPES
from utils.training.folds import train_run

LIKE = {"paper_512": "paper_256"}  # the same but for the size, which a smoke test does not keep


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in LIKE])
def test_each_recipe_trains_one_epoch(name, competition, tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "working_dir", lambda: tmp_path)
    smoke = {"competition_dir": str(competition), "smoke_test": True, "architecture": None, "folds": "0"}
    plan = make_plan(DECLARED | smoke | {"recipe": f"{name} pretrained=false"}, has_gpu=False)
    oof = train_run(plan.config, plan.data(1), plan.run_dir, plan.execution)
    assert oof.probability.between(0, 1).all() and plan.run_dir.parent.name == "runs-smoke"
