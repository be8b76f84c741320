"""Pick a few images by label or machine among those whose files exist, and segment them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from utils.core.parallel import map_items
from utils.dicom.file import open_dicom
from utils.images.breast import Crop, breast_mask
from utils.images.preprocessing import finish, halved, make_plan
from utils.images.resample import halvings_to
from utils.images.settings import CacheSettings
from utils.tables.competition import image_paths

SHOWN_SIDE = 512  # px; limit of the longer side of an original
TRIED = 50  # images of a kind whose files are looked for, at most


@dataclass(frozen=True)
class Segmentation:
    """An original image, its breast mask and crop, and the cached image made from it.

    ``picture`` is the shrunken original, float32 (height, width) in [0, 1]. ``crop`` is in pixels of the original,
    whose height and width are ``shape``. ``mask`` is bool and has its own scale. ``cached`` is uint8.
    """

    title: str
    picture: np.ndarray
    shape: tuple[int, int]
    mask: np.ndarray
    crop: Crop
    cached: np.ndarray


def with_files(images: pd.DataFrame, competition_dir: str | Path) -> pd.DataFrame:
    """Keep the training images of patients that have a folder: one listing instead of a look-up per file."""
    folder = Path(competition_dir) / "train_images"
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return images[images.patient_id.isin(present)]


def pick_by_label(images: pd.DataFrame, competition_dir: str | Path, count: int = 3) -> pd.DataFrame:
    """Pick images with invasive, non-invasive and no cancer, of different patients, whose files exist.

    Parameters
    ----------
    images : DataFrame
        Train table from `utils.tables.read_images`. Without the column invasive, all cancer is one kind.
    count : int
        Images of each kind.

    Returns
    -------
    DataFrame
        Rows of ``images`` with the column ``example``, kind by kind. MLO views are preferred. May be empty.
    """
    invasive = images.invasive if "invasive" in images else pd.Series(np.nan, index=images.index)
    kinds = {
        "invasive cancer": (images.cancer == 1) & (invasive == 1),
        "non-invasive cancer": (images.cancer == 1) & (invasive == 0),
        "cancer": (images.cancer == 1) & invasive.isna(),
        "no cancer": images.cancer == 0,
    }
    present = with_files(images, competition_dir)
    shuffled = present.sample(frac=1, random_state=0).sort_values("view", key=lambda view: view != "MLO", kind="stable")
    picked = [
        _first_with_file(shuffled[kind[shuffled.index]], competition_dir, count).assign(example=name)
        for name, kind in kinds.items()
    ]
    return pd.concat(picked)


def pick_by_machine(images: pd.DataFrame, competition_dir: str | Path, count: int = 4) -> pd.DataFrame:
    """Pick one image from each of the ``count`` most common machines that have an image whose file exists."""
    present = with_files(images, competition_dir).sample(frac=1, random_state=0)
    machines = present.machine_id.value_counts().index
    parts = (_first_with_file(present[present.machine_id == machine], competition_dir, 1) for machine in machines)
    picked = list(islice((part for part in parts if len(part)), count))
    return pd.concat(picked) if picked else present.head(0)


def _first_with_file(images: pd.DataFrame, competition_dir: str | Path, count: int) -> pd.DataFrame:
    """Return the first ``count`` images of different patients whose files exist; look for at most `TRIED` files."""
    tried = images.drop_duplicates("patient_id").head(TRIED)
    paths = image_paths(tried, competition_dir, "train")
    found = islice((place for place, path in enumerate(paths) if path.is_file()), count)
    return tried.iloc[list(found)]


def segment_images(
    images: pd.DataFrame, competition_dir: str | Path, settings: CacheSettings, num_workers: int = 0
) -> list[Segmentation]:
    """Segment training images straight from their files, and print which are unreadable.

    Parameters
    ----------
    images : DataFrame
        A few rows, as from `pick_by_machine`.
    settings : CacheSettings
        Settings of the cached images.
    num_workers : int
        Number of processes; 0 runs in this process.

    Returns
    -------
    list of Segmentation
        In the order of ``images``, without unreadable ones.
    """
    titles = [f"machine {row.machine_id}, {row.laterality} {row.view}" for row in images.itertuples()]
    jobs = list(zip(titles, image_paths(images, competition_dir, "train"), strict=True))
    outcomes = list(map_items(partial(_segment, settings=settings), jobs, num_workers, "Segmenting", "images"))
    for outcome in outcomes:
        if outcome.error:
            print(f"No image of {outcome.item[0]}: {outcome.error}")
    return [outcome.value for outcome in sorted(outcomes, key=lambda outcome: jobs.index(outcome.item)) if not outcome.error]


def _segment(job: tuple[str, Path], settings: CacheSettings) -> Segmentation:
    """Segment and preprocess one file; ``job`` is its title and path."""
    title, path = job
    with open_dicom(path) as file:
        plan = make_plan(file, *settings.arguments)
        cached, _ = finish(file, plan, settings.image_height, settings.image_width)
        picture = file.grey(halved(file, halvings_to(file.shape, SHOWN_SIDE)))
        return Segmentation(title, picture, file.shape, breast_mask(picture), plan.crop, cached)
