"""The material of a report: runs, their out-of-fold breasts, their training table, and its cached images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from utils.decision.threshold import Threshold
from utils.decision.tuning import Tuning, tune
from utils.evaluation.subgroups import IMAGES_PER_BREAST, METADATA, VERDICT, with_traits
from utils.images.cache import default_cache_dir
from utils.images.cached import picture_path, read_manifest
from utils.images.inputs import Inputs
from utils.metrics.intervals import PatientBootstrap
from utils.metrics.thresholds import CHOICES, nested_decisions
from utils.runs.found import name_runs
from utils.runs.oof import PredictionError, oof_of_runs
from utils.runs.run import Run
from utils.tables.breasts import by_breast

SUSPICIOUS_AUC = 0.6  # AUC of the number of images per breast; near chance on the real set


@dataclass(frozen=True)
class Material:
    """Everything that a report is made from, collected by `gather`.

    Parameters
    ----------
    runs : dict
        Name to run folder.
    inputs : Inputs
        Data, and the cache of the runs whose images it has.
    images : DataFrame
        The train table.
    tuned : Threshold
        From threshold.json.
    curves : dict
        Name to out-of-fold breasts of each run, uncalibrated.
    breasts : DataFrame
        Out-of-fold breasts of the runs' average, calibrated, with the traits of
        `utils.evaluation.subgroups.with_traits`.
    decisions : ndarray of shape (len(breasts),)
        Each fold decided with the threshold of the other folds.
    boxes : DataFrame or None
        True boxes, from `utils.images.inputs.Inputs.boxes`.
    """

    runs: dict[str, Path]
    inputs: Inputs
    images: pd.DataFrame
    tuned: Threshold
    curves: dict[str, pd.DataFrame]
    breasts: pd.DataFrame
    decisions: np.ndarray
    boxes: pd.DataFrame | None

    @property
    def title(self) -> str:
        """Return the run's name, or "the average of n runs", weighted if the weights differ."""
        if len(self.runs) == 1:
            return next(iter(self.runs))
        return f"the {'weighted ' if self._is_weighted else ''}average of {len(self.runs)} runs"

    @property
    def _is_weighted(self) -> bool:
        return len(set(self.tuned.weights)) > 1

    @property
    def subtitle(self) -> str:
        """Return one line on the data behind the report."""
        count = f"{len(self.breasts):,} breasts, {self.breasts.cancer.sum():,} with cancer"
        kind = "PHANTOM: synthetic images, no patients. " if self.inputs.is_phantom else ""
        how = ", one random image of each breast" if self.tuned.one_image else ""
        return f"{kind}Out-of-fold predictions of {self.title}: {count}{how}. Not a medical device."

    def headline(self, sources: pd.DataFrame) -> pd.DataFrame:
        """Return the main figures as text with intervals.

        Parameters
        ----------
        sources : DataFrame
            From `utils.evaluation.subgroups.sources_of_auc`.
        """
        tuned, breasts = self.tuned, self.breasts
        precision = PatientBootstrap(breasts.patient_id).average_precision(breasts.cancer, breasts.probability)
        rows = {
            "AUC": (sources.loc["the model", "AUC [95 %]"], "1 is perfect, 0.5 is chance"),
            "AUC of metadata alone": (sources.loc[METADATA, "AUC [95 %]"], f"the model is {sources.loc[METADATA, VERDICT]}"),
            "average precision": (precision, f"{breasts.cancer.mean():.3f} is chance"),
            "pF1, nested over folds": (str(tuned.pf1_nested), self._worth),
            "pF1, nested over patients": (str(tuned.pf1_patient_nested), "with random groups of patients in place of folds"),
            "pF1, naive": (f"{tuned.pf1:.3f}", f"on the breasts that chose the threshold; optimism {tuned.optimism:+.3f}"),
            "threshold": (f"{tuned.threshold:.4f}", self._threshold_note),
        }
        return pd.DataFrame(rows, index=["value [95 %]", "what it says"]).T.rename_axis("figure")

    @property
    def _worth(self) -> str:
        """Return a sentence on what the nested pF1 estimates."""
        chosen = ["the runs' weights"] if self._is_weighted else []
        if any(Run(run).config.keep_epoch == "best_auc" for run in self.runs.values()):
            chosen.append("the epochs (keep_epoch best_auc)")
        if chosen:
            return f"an estimate for new patients, a little too high: these breasts chose {' and '.join(chosen)}"
        return "an honest estimate for new patients"

    @property
    def _threshold_note(self) -> str:
        """Return the scale of the threshold, and the sites that have their own."""
        by_site = ", ".join(f"site {site}: {value:.4f}" for site, value in self.tuned.site_thresholds.items())
        own = f"; except {by_site}" if by_site else ""
        return f"on the calibrated probability, at the {self.tuned.choice} of pF1{own}"

    def notes(self, sources: pd.DataFrame) -> list[str]:
        """Return warnings to read before any figure: traps in the data, and limits of the figures."""
        found = []
        auc = sources.loc[IMAGES_PER_BREAST, "AUC [95 %]"]
        if auc.low > SUSPICIOUS_AUC:
            remedy = "a breast-level model may count them. Run again with -p one_image True, and train with -p max_views 1."
            done = "all figures here leave it out by counting one random image of each breast."
            found.append(
                f"The number of images of a breast predicts cancer with an AUC of {auc}, an artefact of the data:"
                f" {done if self.tuned.one_image else remedy}"
            )
        if sources.loc[METADATA, VERDICT] != "better":
            found.append("The model is not better than metadata alone: it has not yet shown that it reads the images.")
        return found

    @cached_property
    def inputs_of(self) -> dict[Path, Inputs]:
        """Return, by run, the data with the run's own cache: that of ``inputs`` if it has its images, else the default one."""
        return {run: self._inputs_of(run) for run in self.runs.values()}

    def _inputs_of(self, run: Path) -> Inputs:
        settings, cache_dir = Run(run).config.preprocessing, self.inputs.cache_dir
        if read_manifest(cache_dir, "train", settings).empty:
            cache_dir = default_cache_dir(self.inputs.competition_dir, settings)
        return replace(self.inputs, settings=settings, cache_dir=cache_dir)

    def manifest_of(self, run: Path) -> pd.DataFrame:
        """Return the manifest of a run's cached images; empty if there is no cache."""
        return read_manifest(self.inputs_of[run].cache_dir, "train", self.inputs_of[run].settings)

    @cached_property
    def readable_images(self) -> dict[Path, pd.DataFrame]:
        """Return, by run, the rows of the train table whose images are in its cache: what it was trained on."""
        return {run: self._readable_images(run) for run in self.runs.values()}

    def _readable_images(self, run: Path) -> pd.DataFrame:
        manifest, cache_dir = self.manifest_of(run), self.inputs_of[run].cache_dir
        readable = set(manifest.image_id[manifest.error == ""])
        kept = [name in readable and picture_path(cache_dir, "train", name).is_file() for name in self.images.image_id]
        return self.images[kept]

    def has_pictures(self, run: Path) -> bool:
        """True if the cache has images of all the breasts in the report."""
        return set(self.breasts.prediction_id) <= set(self.readable_images[run].prediction_id)


def gather(runs: Sequence[Path], tuned: Threshold, inputs: Inputs, one_image: bool = False, boxes_path: str = "") -> Material:
    """Gather the material of a report on runs, and check that it is consistent.

    Parameters
    ----------
    runs : sequence of Path
        Folders; see `utils.training.example_run.find_or_train_runs`.
    tuned : Threshold
        From `utils.decision.tuning.find_threshold`.
    inputs : Inputs
        From `utils.images.inputs.open_inputs` with the first run's image size.
    one_image : bool
        Count one random image of each breast, and tune again if ``tuned`` did not.
    boxes_path : str
        CSV of true boxes; empty for boxes.csv of the competition's folder, if it has one.

    Raises
    ------
    PredictionError
        If train.csv lacks some of the runs' breasts or labels them differently.
    utils.tables.strict_csv.TableError
        If the boxes are unreadable.
    """
    if one_image and not tuned.one_image:
        tuned = tune(runs, Tuning(tuned.aggregation, tuned.choice, one_image=True), tuned.weights_of(runs))
    images, named = inputs.images("train"), name_runs(runs)
    images = images[Run(runs[0]).fold_of(images.patient_id).notna()]  # a smoke test leaves patients out
    curves = {name: oof_of_runs([run], tuned.aggregation, one_image=tuned.one_image) for name, run in named.items()}
    breasts = tuned.out_of_fold(runs)
    _check_same_data(breasts, images, inputs.competition_dir)
    breasts = with_traits(breasts, images)
    sites = breasts.site_id if tuned.site_thresholds else None
    decisions = nested_decisions(breasts.cancer, breasts.probability, breasts.fold, CHOICES[tuned.choice], sites)
    return Material(named, inputs, images, tuned, curves, breasts, decisions, inputs.boxes(boxes_path))


def _check_same_data(breasts: pd.DataFrame, images: pd.DataFrame, competition_dir: Path) -> None:
    """Raise PredictionError if train.csv lacks a breast or labels it differently."""
    labels = breasts.prediction_id.map(by_breast(images).cancer)
    differing = breasts.prediction_id[labels.to_numpy() != breasts.cancer.to_numpy()].tolist()
    if differing:
        raise PredictionError(
            f"{competition_dir}/train.csv lacks {len(differing)} of the runs' {len(breasts)} breasts, or labels them"
            f" differently, first {differing[0]}: give the competition_dir that they were trained on."
        )
