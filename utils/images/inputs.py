"""What a notebook works on: which competition, which image size, which cache."""

from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from utils.core.errors import KitError
from utils.core.folders import competition_folder, named_folder, resolve, working_dir
from utils.images.cache import attached_cache_dir, build_cache, default_cache_dir
from utils.images.settings import CacheSettings
from utils.images.training_data import TrainingData
from utils.phantom.competition import BOXES_FILE as PHANTOM_BOXES
from utils.phantom.competition import is_phantom_competition, make_competition
from utils.tables.boxes import BOXES_FILE, read_boxes
from utils.tables.breasts import by_breast
from utils.tables.competition import read_images

REAL_SIZE = (1024, 512)
PHANTOM_SIZE = (160, 96)
SMOKE_SIZE = (64, 48)
SMOKE_PATIENTS = 12


@dataclass(frozen=True)
class Inputs:
    """A competition's folder, whether it is the phantom, and its cache."""

    competition_dir: Path
    is_phantom: bool
    settings: CacheSettings
    cache_dir: Path
    smoke_test: bool

    @property
    def splits(self) -> list[str]:
        """Return which of train and test the competition has."""
        return [split for split in ("train", "test") if (self.competition_dir / f"{split}.csv").is_file()]

    def images(self, split: str) -> pd.DataFrame:
        """Return the rows of train.csv or test.csv; only those of a few patients in a smoke test."""
        images = read_images(self.competition_dir, split)
        return few_patients(images, SMOKE_PATIENTS) if self.smoke_test else images

    def cached(self, split: str, num_workers: int, cluster: str = "") -> tuple[pd.DataFrame, pd.DataFrame]:
        """Preprocess the images of a split that the cache lacks, and return all of its images and their manifest."""
        images = self.images(split)
        print(f"Images of {split}: {self.settings.image_height} x {self.settings.image_width} px, cached in {self.cache_dir}")
        return images, build_cache(images, self.competition_dir, split, self.cache_dir, self.settings, num_workers, cluster)

    def training_data(self, boxes: pd.DataFrame | None = None, extra_competition_dirs: str = "") -> TrainingData:
        """Return what a run would train on, before any preprocessing; ``boxes`` is from `Inputs.boxes`."""
        extra = [other._as_extra(other.images("train")) for other in self._other_sets(extra_competition_dirs)]
        return self._training_data(self.images("train"), boxes, extra)

    def cached_training_data(
        self, num_workers: int, boxes: pd.DataFrame | None = None, extra_competition_dirs: str = ""
    ) -> TrainingData:
        """Preprocess what the caches lack, and return what a run trains on, without unreadable images.

        Raises
        ------
        KitError
            If a folder of ``extra_competition_dirs`` has no train.csv, is a phantom next to real data, or none of its images
            can be read.
        """
        others = self._other_sets(extra_competition_dirs)  # before hours of work: it may raise
        images, manifest = self.cached("train", num_workers)
        extra = [other._cached_as_extra(num_workers) for other in others]
        return self._training_data(_readable(images, manifest), boxes, extra)

    def _training_data(self, images: pd.DataFrame, boxes: pd.DataFrame | None, extra: list[pd.DataFrame]) -> TrainingData:
        table = pd.concat(extra, ignore_index=True) if extra else None
        return TrainingData(images, self.cache_dir, boxes, table, self.is_phantom, self.smoke_test)

    def _other_sets(self, extra_competition_dirs: str) -> list["Inputs"]:
        """Return other sets with their own caches; raise KitError if a folder has no train.csv or is a misplaced phantom."""
        names = [name.strip() for name in extra_competition_dirs.split(",") if name.strip()]
        folders = [named_folder(name, "extra_competition_dirs") for name in names]
        for folder in folders:
            if not (folder / "train.csv").is_file():
                raise KitError(
                    f"extra_competition_dirs {folder} has no train.csv: convert the set with python -m utils.external."
                )
            if is_phantom_competition(folder) and not self.is_phantom:
                raise KitError(f"extra_competition_dirs {folder} is a phantom: real models must not train on it.")
        return [replace(self, competition_dir=folder, cache_dir=default_cache_dir(folder, self.settings)) for folder in folders]

    def _as_extra(self, images: pd.DataFrame) -> pd.DataFrame:
        """Add what `TrainingData.extra` needs: ``cache_dir``, and ``extra_set``, the folder's name."""
        return images.assign(cache_dir=str(self.cache_dir), extra_set=self.competition_dir.name)

    def _cached_as_extra(self, num_workers: int) -> pd.DataFrame:
        """Preprocess the training set as another set's; raise KitError if none of its images can be read."""
        images, manifest = self.cached("train", num_workers)
        readable = _readable(images, manifest)
        if readable.empty:
            raise KitError(
                f"extra_competition_dirs {self.competition_dir}: none of its images can be read: {manifest.error.iloc[0]}"
            )
        share = f"{readable.cancer.mean():.1%} positive"
        print(f"Extra, for training only: {len(readable)} of {len(images)} images of {self.competition_dir.name}, {share}")
        return self._as_extra(readable)

    def boxes(self, boxes_path: str | Path | None, extra_competition_dirs: str = "") -> pd.DataFrame | None:
        """Read the boxes around findings of the competition and of other sets.

        Parameters
        ----------
        boxes_path : path or None
            A file that replaces the competition's boxes, and those of other sets for the images that it names.
        extra_competition_dirs : str
            Folders of other sets, separated by commas.

        Returns
        -------
        DataFrame or None
            As from `utils.tables.boxes.read_boxes`; None if there are no boxes.
        """
        own = self.competition_dir / (PHANTOM_BOXES if self.is_phantom else BOXES_FILE)
        first = resolve(boxes_path) if boxes_path else own
        others = [other.competition_dir / BOXES_FILE for other in self._other_sets(extra_competition_dirs)]
        tables = [read_boxes(first)] if boxes_path or first.is_file() else []
        known = tables[0].image_id if tables else []
        for table in (read_boxes(path) for path in others if path.is_file()):
            tables.append(table[~table.image_id.isin(known)])
        return pd.concat(tables, ignore_index=True) if tables else None


def open_inputs(
    competition_dir: str | Path | None,
    cache_dir: str | Path | None = None,
    image_height: int | None = None,
    image_width: int | None = None,
    smoke_test: bool = False,
    exact: bool = False,
) -> Inputs:
    """Find the competition that a notebook's parameters name, and print it; make the phantom if there is none.

    Parameters
    ----------
    competition_dir : path or None
        None searches Kaggle's input folder, then ``data/``.
    cache_dir : path or None
        None uses a cache among Kaggle's inputs, else the default folder.
    image_height, image_width : int or None
        None is 1024 x 512 for real data, 160 x 96 for the phantom, 64 x 48 in a smoke test.
    smoke_test : bool
        Use few patients and small images: shows in a minute whether everything works, and nothing about quality.
    exact : bool
        Decode every image at full resolution.

    Raises
    ------
    KitError
        If ``competition_dir`` does not exist or has no tables, or `CacheSettings` refuses a size.
    """
    folder, is_phantom = _find_or_make(competition_dir, smoke_test)
    height, width = _default_size(is_phantom, smoke_test)
    height = height if image_height is None else image_height
    width = width if image_width is None else image_width
    settings = CacheSettings(height, width, exact=exact)
    default = attached_cache_dir(folder, settings) or default_cache_dir(folder, settings)
    cache = resolve(cache_dir) if cache_dir else default
    print(f"Competition: {folder}{' (PHANTOM: synthetic images, no patients)' if is_phantom else ''}")
    return Inputs(folder, is_phantom, settings, cache, smoke_test)


def _default_size(is_phantom: bool, smoke_test: bool) -> tuple[int, int]:
    if smoke_test:
        return SMOKE_SIZE
    return PHANTOM_SIZE if is_phantom else REAL_SIZE


def site_of_breasts(competition_dir: str | Path | None) -> pd.Series:
    """Return the site of each breast of train.csv.

    Returns
    -------
    Series
        site_id by prediction_id.

    Raises
    ------
    KitError
        If no competition is named and none is found.
    """
    folder = competition_folder(competition_dir)
    if not folder:
        raise KitError("Thresholds for each site need the train.csv that the runs were trained on: give competition_dir.")
    return by_breast(read_images(folder, "train")).site_id


def _readable(images: pd.DataFrame, manifest: pd.DataFrame) -> pd.DataFrame:
    return images[(manifest.error == "").to_numpy()]


def few_patients(images: pd.DataFrame, count: int) -> pd.DataFrame:
    """Keep the first patients, half of them with cancer and half without if the table has labels."""
    if "cancer" not in images:
        return images[images.patient_id.isin(images.patient_id.unique()[:count])]
    positives = by_breast(images).groupby("patient_id", sort=False).cancer.max()
    kept = [*positives[positives == 1].index[: count // 2], *positives[positives == 0].index[: count // 2]]
    return images[images.patient_id.isin(kept)]


def _find_or_make(competition_dir: str | Path | None, smoke_test: bool) -> tuple[Path, bool]:
    """Return the competition's folder and whether it is the phantom; make the phantom if there is no competition."""
    folder = competition_folder(competition_dir)
    if folder is None:
        print("No competition data found (Kaggle's input folder, data/): making the phantom competition.")
        if smoke_test:
            return make_competition(working_dir() / "phantom-smoke", n_train_patients=16, n_test_patients=6, height=128), True
        return make_competition(working_dir() / "phantom"), True
    if not any((folder / name).is_file() for name in ("train.csv", "test.csv")):
        raise KitError(f"competition_dir {folder} has no train.csv and no test.csv; name the folder of the tables and images.")
    return folder, is_phantom_competition(folder)


def has_real_data(competition_dir: str | Path = "") -> bool:
    """True if the named competition, or the one that is found, is real."""
    folder = competition_folder(competition_dir)
    return folder is not None and not is_phantom_competition(folder)
