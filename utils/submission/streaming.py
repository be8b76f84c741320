"""Predict a test set chunk by chunk: decode, predict and improve the submission, until it is complete or time runs out."""

import contextlib
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from utils.core.environment import on_kaggle, pick_devices
from utils.core.parallel import prefetched
from utils.decision.threshold import Threshold
from utils.images.cache import build_cache, default_cache_dir, picture_path, summarise
from utils.images.settings import CacheSettings
from utils.phantom.competition import is_phantom_competition
from utils.submission.deadline import Deadline, Pace, Plan
from utils.submission.draft import warning_only
from utils.submission.ensemble import load_variants
from utils.tables.competition import name_files

FIRST_CHUNK = 16  # images; small, so that a rate is known before time is planned
LARGEST_CHUNK = 2000
CHUNK_SECONDS = 120.0
SHOWN_FAILURES = 5
SPARE_DISK = 2**30  # bytes of disk space that the cache leaves free


@dataclass(frozen=True)
class Chunk:
    """Test images of some patients, in the caches.

    Parameters
    ----------
    manifests, seconds : list
        Manifest and decoding time for each image size.
    written : list of Path
        Cached images that did not exist before.
    """

    images: pd.DataFrame
    plan: Plan
    manifests: list[pd.DataFrame]
    seconds: list[float]
    written: list[Path]

    def by_patient(self) -> Iterator["Chunk"]:
        """Yield a chunk for each patient."""
        for rows in self.images.groupby("patient_id", sort=False).indices.values():
            share = len(rows) / len(self.images)
            manifests = [manifest.iloc[rows] for manifest in self.manifests]
            yield Chunk(self.images.iloc[rows], self.plan, manifests, [seconds * share for seconds in self.seconds], [])


@dataclass
class Log:
    """What happened, for the provenance.

    Parameters
    ----------
    stages : dict
        Images and seconds of each stage.
    plans : dict of str to int
        Number of images predicted under each plan.
    failures : list of str
        Which images were not predicted, and why.
    acceleration : dict of str to str
        How each run's networks were made faster, if they were.
    not_finite : dict of str to int
        Number of images whose NaN or infinite prediction was ignored, by fold folder.
    """

    stages: dict = field(default_factory=dict)
    plans: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    acceleration: dict[str, str] = field(default_factory=dict)
    not_finite: dict[str, int] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """Return images, seconds and seconds per image by stage, then for each fold its images that gave NaN or infinity."""
        table = pd.DataFrame.from_dict(self.stages, "index", columns=["images", "seconds"]).astype({"images": int})
        table = table.assign(per_image=table.seconds / table.images.where(table.images > 0)).round(3)
        for fold, images in self.not_finite.items():
            table.loc[f"NaN or infinite: {fold}", "images"] = images
        return table.astype({"images": int}).rename_axis("stage")

    def to_json(self, deadline: Deadline) -> dict:
        """Return a dictionary for the provenance, with the total time."""
        return asdict(self) | {"stages": self.stages | {"total": {"seconds": deadline.spent}}}

    def spent(self, stage: str, seconds: float, images: int = 0) -> None:
        """Add time and images to a stage."""
        row = self.stages.setdefault(stage, {"images": 0, "seconds": 0.0})
        row["images"] += images
        row["seconds"] += seconds


def predict_runs(
    runs: Sequence[Path],
    test_images: pd.DataFrame,
    competition_dir: Path,
    cache_dir: Path | None,
    tuned: Threshold,
    num_workers: int,
    deadline: Deadline | None = None,
    publish: Callable[[pd.Series], None] | None = None,
) -> tuple[pd.Series, Log]:
    """Predict test breasts with every fold of every run, average the runs by weight, and calibrate.

    Each run's images go through the preprocessing that it was trained on. If time runs short, mirror images are left out
    first, then folds, then the image sizes of the last runs. On a GPU, decoding and prediction overlap; on a CPU they
    compete for cores, so they alternate.

    Parameters
    ----------
    runs : sequence of Path
    test_images : DataFrame
        From `utils.tables.read_images`.
    competition_dir : Path
    cache_dir : Path or None
        None for each preprocessing's default; if there are several, each gets a subfolder.
    tuned : Threshold
        From `utils.decision.tuning.find_threshold`.
    num_workers : int
        Number of decoding processes.
    deadline : Deadline, optional
    publish : callable, optional
        Called after each chunk with all probabilities so far.

    Returns
    -------
    probabilities : Series
        Finite, indexed by prediction_id; breasts that no run could predict are absent.
    log : Log

    Raises
    ------
    SubmissionError
        If a run is unusable; see `utils.submission.ensemble.load_variants`.
    Exception
        If no patient of the first chunk can be predicted. A later failure costs only its own patient.
    """
    weights = {run: weight for run, weight in zip(runs, tuned.weights_of(runs), strict=True) if weight > 0}
    stream = _Stream(list(weights), test_images, Path(competition_dir), cache_dir, num_workers, deadline or Deadline())
    predicted = pd.Series(dtype=float)
    for by_run in stream.predictions(tuned.aggregation):
        weight = pd.Series(weights).loc[by_run.columns]
        # Only runs with a finite prediction count; a breast without any is left out.
        averaged = ((by_run * weight).sum(axis=1) / (by_run.notna() * weight).sum(axis=1)).dropna()
        predicted = pd.concat([predicted, tuned.calibrate(averaged)]) if len(predicted) else tuned.calibrate(averaged)
        if publish:
            try:
                publish(predicted)
            except OSError as error:  # the disk is full until images are deleted; the last update writes everything
                print(f"The submission was not updated: {error}")
    return predicted, stream.log


class _Stream:
    """The state of `predict_runs`: networks, caches, measured pace and log."""

    def __init__(self, runs, test_images, competition_dir, cache_dir, num_workers, deadline):
        self.log, self.deadline = Log(), deadline
        start = time.perf_counter()
        devices = pick_devices()
        self.variants = load_variants(runs, is_phantom_competition(competition_dir), devices)
        self.log.spent("start", time.perf_counter() - start)
        self.images = test_images.sort_values("patient_id", kind="stable").reset_index(drop=True)
        self.competition_dir, self.num_workers = competition_dir, num_workers
        self.cache_dirs = [self._cache_dir(cache_dir, variant.settings) for variant in self.variants]
        self.overlaps = devices[0].type == "cuda"
        self.pace = Pace([variant.work for variant in self.variants], self.overlaps)
        self.keeps_pictures = cache_dir is not None or not on_kaggle()  # on Kaggle, thousands of files would become output
        self.done_pictures: list[Path] = []
        self.accelerated: set[int] = set()  # image sizes whose networks were tried
        self.manifests: list[list[pd.DataFrame]] = [[] for _ in self.variants]

    def _cache_dir(self, cache_dir: Path | None, settings: CacheSettings) -> Path:
        default = default_cache_dir(self.competition_dir, settings)
        if cache_dir is None:
            return default
        return Path(cache_dir) if len(self.variants) == 1 else Path(cache_dir) / default.name

    def predictions(self, aggregation: str) -> Iterator[pd.DataFrame]:
        """Yield each chunk's probabilities: one row per breast, one column per run."""
        chunks = self._chunks()
        with tqdm(total=len(self.images), desc="Predicting", unit=" images", mininterval=1.0) as bar:
            for chunk in prefetched(chunks) if self.overlaps else chunks:
                for seen, manifest in zip(self.manifests, chunk.manifests, strict=False):
                    seen.append(manifest)
                yield from self._predict_or_fail(chunk, aggregation)
                with warning_only("Pictures that have been predicted are not deleted."):
                    self._make_room(chunk, bar.total - bar.n)
                bar.set_postfix_str(str(chunk.plan), refresh=False)
                bar.update(len(chunk.images))
        with warning_only("How the pictures were decoded can't be shown."):
            self._summarise()

    def _summarise(self) -> None:
        """Print how each image size was decoded."""
        for variant, manifests in zip(self.variants, self.manifests, strict=True):
            if manifests:
                settings = variant.settings
                print(f"Pictures of {settings.image_height} x {settings.image_width} px: {summarise(pd.concat(manifests))}")

    def _chunks(self) -> Iterator[Chunk]:
        """Decode chunks of about `CHUNK_SECONDS` each, of complete patients, until all images are done or time runs out."""
        ends = self.images.groupby("patient_id", sort=False).size().cumsum().to_numpy()
        start = 0
        while start < len(self.images):
            plan = self.pace.choose(len(self.images) - start, self.deadline.left)
            rate = self.pace.seconds_per_image(plan)
            size = min(LARGEST_CHUNK, max(FIRST_CHUNK, int(CHUNK_SECONDS / rate))) if rate else FIRST_CHUNK
            end = int(ends[ends <= max(start + size, ends[ends > start][0])][-1])
            images = self.images.iloc[start:end]
            if (end - start) * rate > self.deadline.left:
                self.log.failures.append(f"The time is over: {len(self.images) - start} images are not predicted.")
                print(self.log.failures[-1])
                return
            try:
                yield self._decode(images, plan)
            except Exception as error:
                if start == 0:
                    raise
                self._fail(images, error)
            start = end

    def _decode(self, images: pd.DataFrame, plan: Plan) -> Chunk:
        """Decode a chunk's images into the cache of each size in the plan."""
        manifests, seconds, lacking = [], [], []
        for variant, cache_dir in zip(self.variants[: plan.variants], self.cache_dirs, strict=False):
            began = time.perf_counter()
            pictures = [picture_path(cache_dir, "test", name) for name in images.image_id[name_files(images)]]
            lacking += [path for path in pictures if not path.is_file()]
            workers = {"num_workers": self.num_workers, "quiet": True}
            manifests.append(build_cache(images, self.competition_dir, "test", cache_dir, variant.settings, **workers))
            seconds.append(time.perf_counter() - began)
            self.log.spent("decode", seconds[-1], len(images))
        return Chunk(images, plan, manifests, seconds, [path for path in lacking if path.is_file()])

    def _predict_or_fail(self, chunk: Chunk, aggregation: str) -> Iterator[pd.DataFrame]:
        """Predict a chunk; if that fails, predict each patient alone, so that only those that cause errors are lost."""
        try:
            yield from self._predict(chunk, aggregation)
            return
        except Exception as error:
            failed = error
        for patient in chunk.by_patient():
            try:
                yield from self._predict(patient, aggregation)
            except Exception as error:
                self._fail(patient.images, error)
        if not self.log.plans:  # if no patient of the first chunk could be predicted, the others can't be either
            raise failed

    def _predict(self, chunk: Chunk, aggregation: str) -> Iterator[pd.DataFrame]:
        """Yield a chunk's probabilities with every image size, and log pace, plan and time."""
        by_variant, not_finite = [], Counter()
        for place, manifest in enumerate(chunk.manifests):
            readable = chunk.images[(manifest.error == "").to_numpy()]
            if readable.empty:
                continue
            if place not in self.accelerated:
                self._accelerate(place, readable)
            began = time.perf_counter()
            variant, cache_dir = self.variants[place], self.cache_dirs[place]
            by_variant.append(variant.predict(readable, cache_dir, aggregation, chunk.plan, not_finite))
            seconds = time.perf_counter() - began
            self.pace.measured(place, chunk.plan, len(chunk.images), chunk.seconds[place], seconds)
            self.log.spent("predict", seconds, len(readable))
        self.log.plans[str(chunk.plan)] = self.log.plans.get(str(chunk.plan), 0) + len(chunk.images)
        self._note_not_finite(not_finite)
        if by_variant:
            yield pd.concat(by_variant, axis=1)

    def _note_not_finite(self, counts: Counter) -> None:
        """Log ignored predictions, and print each fold at its first one."""
        for fold, images in counts.items():
            name = str(fold)
            if name not in self.log.not_finite:
                print(f"{name} gives NaN or infinity, first for {images} images. They are left out. Train it again.")
            self.log.not_finite[name] = self.log.not_finite.get(name, 0) + images

    def _accelerate(self, place: int, images: pd.DataFrame) -> None:
        """Make one image size's networks faster, and log what was chosen."""
        self.accelerated.add(place)
        start = time.perf_counter()
        found = {}
        try:
            found = self.variants[place].accelerate(images, self.cache_dirs[place], len(self.images))
        except Exception as error:  # the unaccelerated networks still work
            print(f"No network is made faster ({type(error).__name__}): going on as they are.")
        self.log.acceleration |= found
        for run, what in found.items():
            print(f"{run}: {what}")
        self.log.spent("start", time.perf_counter() - start)

    def _fail(self, images: pd.DataFrame, error: Exception) -> None:
        """Log why images are not predicted, and print the first few failures."""
        reason = " ".join(str(error).split())
        self.log.failures.append(f"{len(images)} images are not predicted: {type(error).__name__}: {reason}")
        if len(self.log.failures) <= SHOWN_FAILURES:
            print(self.log.failures[-1])
        with contextlib.suppress(RuntimeError):  # after some errors a GPU refuses every call
            torch.cuda.empty_cache()

    def _make_room(self, chunk: Chunk, images_left: int) -> None:
        """Delete predicted images from the cache if they are not kept, or if the disk has no space for the rest."""
        self.done_pictures += chunk.written
        needed = sum(path.stat().st_size for path in chunk.written) / len(chunk.images) * images_left
        if not self.keeps_pictures or shutil.disk_usage(self.cache_dirs[0]).free < needed + SPARE_DISK:
            for path in self.done_pictures:
                path.unlink(missing_ok=True)
            self.done_pictures = []
