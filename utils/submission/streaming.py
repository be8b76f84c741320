"""Predict a test set chunk by chunk: decode, predict and improve the submission, until it is complete or time runs out."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd
import torch

from utils.core.devices import pick_devices
from utils.core.parallel import prefetched
from utils.core.progress import progress_bar
from utils.decision.threshold import Threshold
from utils.phantom.competition import is_phantom_competition
from utils.submission.deadline import Deadline, Pace, Plan
from utils.submission.decoding import Chunk, Decoder, Source
from utils.submission.draft import warning_only
from utils.submission.ensemble import load_variants

FIRST_CHUNK = 16  # images; small, so that a rate is known before time is planned
LARGEST_CHUNK = 2000
CHUNK_SECONDS = 120.0
SHOWN_FAILURES = 5


@dataclass
class Log:
    """A log of the prediction, for the provenance.

    Parameters
    ----------
    stages : dict
        Images and seconds of each stage.
    plans : dict of str to int
        Number of images predicted under each plan.
    failures : list of str
        Images that were not predicted, and the reasons.
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
    tuned: Threshold,
    source: Source,
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
    tuned : Threshold
        From `utils.decision.tuning.find_threshold`.
    source : Source
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
    stream = _Stream(list(weights), source, deadline or Deadline())
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
    """The state of `predict_runs`: networks, decoder, measured pace and log."""

    def __init__(self, runs: Sequence[Path], source: Source, deadline: Deadline):
        self.log, self.deadline = Log(), deadline
        start = time.perf_counter()
        devices = pick_devices()
        self.variants = load_variants(runs, is_phantom_competition(source.competition_dir), devices)
        self.log.spent("start", time.perf_counter() - start)
        self.images = source.images.sort_values("patient_id", kind="stable").reset_index(drop=True)
        self.decoder = Decoder(source, [variant.settings for variant in self.variants])
        self.pace = Pace([variant.work for variant in self.variants], overlaps=devices[0].type == "cuda")
        self.accelerated: set[int] = set()  # image sizes whose networks were tried

    def predictions(self, aggregation: str) -> Iterator[pd.DataFrame]:
        """Yield each chunk's probabilities: one row per breast, one column per run."""
        chunks = self._chunks()
        with progress_bar(None, "Predicting", "images", len(self.images)) as bar:
            for chunk in prefetched(chunks) if self.pace.overlaps else chunks:
                yield from self._predict_or_fail(chunk, aggregation)
                with warning_only("Predicted images were not deleted from the cache."):
                    self.decoder.free_disk(chunk, bar.total - bar.n)
                bar.set_postfix_str(str(chunk.plan), refresh=False)
                bar.update(len(chunk.images))
        with warning_only("The summary of decoding is unavailable."):
            self.decoder.summarise()

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
                self.log.failures.append(f"Out of time: {len(self.images) - start} images are not predicted.")
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
        """Decode a chunk, and log the time."""
        chunk = self.decoder.decode(images, plan)
        for seconds in chunk.seconds:
            self.log.spent("decode", seconds, len(images))
        return chunk

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
            variant, cache_dir = self.variants[place], self.decoder.cache_dirs[place]
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
                print(f"{name} predicts NaN or infinity, first for {images} images. They are ignored; train this fold again.")
            self.log.not_finite[name] = self.log.not_finite.get(name, 0) + images

    def _accelerate(self, place: int, images: pd.DataFrame) -> None:
        """Make one image size's networks faster, and log what was chosen."""
        self.accelerated.add(place)
        start = time.perf_counter()
        try:
            found = self.variants[place].accelerate(images, self.decoder.cache_dirs[place], len(self.images))
        except Exception as error:  # the unaccelerated networks still work
            print(f"The networks were not accelerated ({type(error).__name__}); they run unchanged.")
            found = {}
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
