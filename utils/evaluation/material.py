"""What a report is about: runs, their out-of-fold breasts, the table that they were trained on, and its pictures."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from utils.core.environment import KitError, pick_device, resolve
from utils.decision.threshold import Threshold
from utils.decision.thresholds import CHOICES, nested_decisions, nested_site_decisions
from utils.decision.tuning import find_threshold, tune
from utils.evaluation.explanation import ExplanationError, check_network, choose_examples, explain_run
from utils.evaluation.figures import show_explanations
from utils.evaluation.localisation import BoxedImages, draw_boxed_images
from utils.evaluation.marks import marks_table
from utils.evaluation.pointing import pointing_table
from utils.evaluation.subgroups import VERDICT, with_traits
from utils.evaluation.training_rows import predict_training_rows
from utils.images.cache import default_cache_dir, picture_path, read_manifest
from utils.images.inputs import Inputs, open_inputs
from utils.metrics.intervals import PatientBootstrap
from utils.runs.config import TrainingError
from utils.runs.oof import PredictionError, name_runs, oof_of_runs
from utils.runs.run import Run
from utils.training.example_run import find_or_train_runs

SHOWN_EXAMPLES = 4  # of each kind of decision
BOX_IMAGES = 200  # with boxes that maps and predicted boxes are measured on, at most
SUSPICIOUS_AUC = 0.6  # of the number of images; on the real set it is near chance


@dataclass(frozen=True)
class Material:
    """Everything that a report is made from.

    Parameters
    ----------
    runs : dict
        Name to run folder.
    inputs : Inputs
        Of the first run's pictures.
    cache_dir : Path or None
        One for all runs; None for each run's default.
    images : DataFrame
        The train table.
    tuned : Threshold
        From threshold.json.
    curves : dict
        Name to out-of-fold breasts of each run, uncalibrated.
    breasts : DataFrame
        Of the runs' average: calibrated, with the traits of `utils.evaluation.subgroups.with_traits`.
    decisions : ndarray of shape (len(breasts),)
        Each fold decided with the others' threshold.
    boxes : DataFrame or None
        True boxes, from `utils.images.inputs.Inputs.boxes`.
    """

    runs: dict[str, Path]
    inputs: Inputs
    cache_dir: Path | None
    images: pd.DataFrame
    tuned: Threshold
    curves: dict[str, pd.DataFrame]
    breasts: pd.DataFrame
    decisions: np.ndarray
    boxes: pd.DataFrame | None

    @property
    def title(self) -> str:
        """The run's name, or that it is an average."""
        return next(iter(self.runs)) if len(self.runs) == 1 else f"the average of {len(self.runs)} runs"

    @property
    def subtitle(self) -> str:
        """What the report rests on."""
        count = f"{len(self.breasts):,} breasts, {self.breasts.cancer.sum():,} with cancer"
        kind = "PHANTOM: synthetic pictures, no patient. " if self.inputs.is_phantom else ""
        how = ", one random image of each breast" if self.tuned.one_image else ""
        return f"{kind}Out-of-fold predictions of {self.title}: {count}{how}. Not a medical device."

    def headline(self, sources: pd.DataFrame) -> pd.DataFrame:
        """The figures that count, as text with intervals; ``sources`` is from `utils.evaluation.subgroups.sources_of_auc`."""
        metadata = sources.index[sources.index.str.startswith("metadata")][0]
        precision = PatientBootstrap(self.breasts.patient_id).average_precision(self.breasts.cancer, self.breasts.probability)
        rows = {
            "AUC": (sources.loc["the model", "AUC [95 %]"], "1 is perfect, 0.5 is chance"),
            "AUC of metadata alone": (sources.loc[metadata, "AUC [95 %]"], f"the model is {sources.loc[metadata, VERDICT]}"),
            "average precision": (precision, f"{self.breasts.cancer.mean():.3f} is chance"),
            "pF1, nested over folds": (str(self.tuned.pf1_nested), self._worth),
            "pF1, nested over patients": (str(self.tuned.pf1_patient_nested), "without the folds' differences"),
            "pF1, naive": (f"{self.tuned.pf1:.3f}", f"on the breasts that chose it; optimism {self.tuned.optimism:+.3f}"),
            "threshold": (f"{self.tuned.threshold:.4f}", f"{self.tuned.choice}, of the calibrated probability"),
        }
        return pd.DataFrame(rows, index=["value [95 %]", "what it says"]).T.rename_axis("figure")

    @property
    def _worth(self) -> str:
        """What the nested pF1 is an estimate of."""
        if any(Run(run).config.keep_epoch == "best_auc" for run in self.runs.values()):
            return "of new patients; a little too good: epochs were chosen on these breasts (keep_epoch best_auc)"
        return "an honest estimate for new patients"

    def notes(self, sources: pd.DataFrame) -> list[str]:
        """What a reader must know before any figure: traps in the data, and what the figures do not show."""
        found = []
        auc = sources.loc["images per breast", "AUC [95 %]"]
        if auc.low > SUSPICIOUS_AUC and not self.tuned.one_image:
            found.append(
                f"How many images a breast has tells cancer with an AUC of {auc}: an artefact of the data, which a model of"
                " breasts may count. Run again with -p one_image True, and train with -p max_views 1."
            )
        metadata = sources.index[sources.index.str.startswith("metadata")][0]
        if auc.low > SUSPICIOUS_AUC and self.tuned.one_image:
            found.append(
                f"How many images a breast has tells cancer with an AUC of {auc}: an artefact of the data, left out of all"
                " figures here by counting one random image of each breast."
            )
        if sources.loc[metadata, VERDICT] != "better":
            found.append("The model is not better than metadata alone: it has not yet shown that it reads the pictures.")
        return found

    def cache_of(self, run: Path) -> Path:
        """Cache of a run's pictures."""
        return self.cache_dir or default_cache_dir(self.inputs.competition_dir, Run(run).config.preprocessing)

    def manifest_of(self, run: Path) -> pd.DataFrame:
        """Rows of a run's cached pictures; empty where there is no cache."""
        return read_manifest(self.cache_of(run), "train", Run(run).config.preprocessing)

    def trained_rows(self) -> dict[str, pd.DataFrame]:
        """Breasts that trained the runs, predicted again; of runs whose pictures are in the cache."""
        how = {"aggregation": self.tuned.aggregation, "one_image": self.tuned.one_image}
        with_pictures = {name: run for name, run in self.runs.items() if self.has_pictures(run)}
        return {
            name: predict_training_rows(run, self.readable_images(run), self.cache_of(run), **how)
            for name, run in with_pictures.items()
        }

    def readable_images(self, run: Path) -> pd.DataFrame:
        """Rows of the train table whose pictures are in a run's cache: what it was trained on."""
        cache, readable = self.cache_of(run), set(self.manifest_of(run).query("error == ''").image_id)
        kept = [name in readable and picture_path(cache, "train", name).is_file() for name in self.images.image_id]
        return self.images[kept]

    def has_pictures(self, run: Path) -> bool:
        """Whether the cache holds pictures of all the breasts that the run predicted."""
        return set(self.breasts.prediction_id) <= set(self.readable_images(run).prediction_id)

    def explanations(
        self, name: str, box_images: int = BOX_IMAGES, seed: int = 0
    ) -> list[tuple[Figure | pd.DataFrame | str, str]]:
        """Show what a run rests on, and measure it where true boxes are known.

        Parameters
        ----------
        name : str
            A key of ``runs``.
        box_images : int
            Images with boxes that maps and predicted boxes are measured on, at most.
        seed : int
            Of the draw of these images, and of the bootstrap.

        Returns
        -------
        list of tuple
            Figures and tables with their captions; a sentence instead where there is no picture, or no map of its network.
        """
        run = self.runs[name]
        if not self.has_pictures(run):
            return [(f"{name}: the cache lacks its pictures; give the cache_dir that it was trained on.", "")]
        boxed = self._boxed_images(run, box_images, seed)
        try:
            shown = [(self.gallery(name), f"{name}: the surest decisions, right and wrong.")]
            shown += self.pointing(name, boxed, seed) if boxed else []
        except ExplanationError as error:
            shown = [(f"{name}: {error}", "")]
        return shown + (self.marks(name, boxed, seed) if boxed and boxed.config.box_weight else [])

    def gallery(self, name: str) -> Figure:
        """Show what a run was surest of, right and wrong, with Grad-CAM on the original images."""
        run, curve = self.runs[name], self.curves[name]
        threshold = CHOICES[self.tuned.choice](curve.cancer, curve.probability)
        return self._show(name, choose_examples(curve, self.readable_images(run), threshold, SHOWN_EXAMPLES))

    def pointing(self, name: str, boxed: BoxedImages, seed: int = 0) -> list[tuple[Figure | pd.DataFrame, str]]:
        """Play the pointing game: whether Grad-CAM finds the true boxes; of all images, of those with cancer, and examples."""
        hits = boxed.point()
        title = f"{name}: how often the strongest place lies in a true box"
        tables = [(pointing_table(hits, seed), f"{title}. {boxed.description}")]
        with_cancer = hits[hits.index.isin(self.images.image_id[self.images.cancer == 1])]
        if 0 < len(with_cancer) < len(hits):
            tables.append((pointing_table(with_cancer, seed), f"{title}, of images with cancer alone."))
        examples = boxed.examples(hits, SHOWN_EXAMPLES)
        probability = self.curves[name].set_index("prediction_id").probability
        figure = self._show(name, examples.assign(probability=probability.loc[examples.prediction_id].to_numpy()))
        return [*tables, (figure, f"{name}: images drawn at random whose map points into a true box, and others.")]

    def marks(self, name: str, boxed: BoxedImages, seed: int = 0) -> list[tuple[pd.DataFrame | str, str]]:
        """Compare the boxes that a run predicted with the true ones; a sentence if they can't be read."""
        try:
            table = marks_table(boxed.measure_marks(), seed)
        except TrainingError as error:
            return [(f"{name}: {error}", "")]
        return [(table, f"{name}: one predicted box an image against the true boxes. {boxed.description}")]

    def _boxed_images(self, run: Path, most: int, seed: int) -> BoxedImages | None:
        if self.boxes is None:
            return None
        return draw_boxed_images(run, self.readable_images(run), self.cache_of(run), self.boxes, most, seed)

    def _show(self, name: str, examples: pd.DataFrame) -> Figure:
        """Show images with their maps, true boxes and predicted ones."""
        run, images, cache = self.runs[name], self.readable_images(self.runs[name]), self.cache_of(self.runs[name])
        config = Run(run).config
        maps = explain_run(run, images, cache, examples.image_id, pick_device())
        boxes = self.boxes
        if config.box_weight:
            with contextlib.suppress(TrainingError):  # which `marks` tells
                predicted = Run(run).marks().assign(predicted=True)
                boxes = pd.concat([predicted, *([] if boxes is None else [boxes.assign(predicted=False)])], ignore_index=True)
        return show_explanations(examples, maps, self.inputs.competition_dir, cache, config.preprocessing, boxes)


def gather(
    run_dirs: str = "",
    threshold_path: str = "",
    competition_dir: str = "",
    cache_dir: str = "",
    one_image: bool = False,
    smoke_test: bool = False,
    boxes_path: str = "",
) -> Material:
    """Find runs, threshold and data, and check that they belong together.

    Parameters
    ----------
    run_dirs, threshold_path, competition_dir, cache_dir : str
        As the notebooks' parameters; empty to look for them.
    one_image : bool
        Count one random image of each breast.
    smoke_test : bool
    boxes_path : str
        CSV of true boxes; empty for boxes.csv of the competition's folder, where it has one.

    Returns
    -------
    Material

    Raises
    ------
    PredictionError
        If there are no runs, or train.csv does not have their breasts with their labels.
    utils.tables.competition.TableError
        If the boxes can't be read.
    """
    runs = find_or_train_runs(run_dirs, smoke_test, competition_dir or "")
    tuned = find_threshold(runs, threshold_path)
    if one_image and not tuned.one_image:
        tuned = tune(runs, tuned.aggregation, choice=tuned.choice, weights=tuned.weights_of(runs), one_image=True)
    settings = Run(runs[0]).config.preprocessing
    inputs = open_inputs(competition_dir, cache_dir, settings.image_height, settings.image_width, smoke_test)
    images, boxes = inputs.images("train"), inputs.boxes(boxes_path)
    named = name_runs(runs)
    _say_what_has_no_maps(named)
    how = {"aggregation": tuned.aggregation, "one_image": tuned.one_image}
    curves = {name: oof_of_runs([run], **how) for name, run in named.items()}
    breasts = tuned.out_of_fold(runs)
    _check_same_data(breasts, images, inputs.competition_dir)
    breasts = with_traits(breasts, images)
    values = breasts.cancer, breasts.probability, breasts.fold
    choose = CHOICES[tuned.choice]
    by_site = tuned.site_thresholds
    decisions = nested_site_decisions(*values, breasts.site_id, choose) if by_site else nested_decisions(*values, choose)
    cache = resolve(cache_dir) if cache_dir else None
    return Material(named, inputs, cache, images, tuned, curves, breasts, decisions, boxes)


def _say_what_has_no_maps(runs: dict[str, Path]) -> None:
    for name, run in runs.items():
        try:
            check_network(Run(run).config)
        except KitError as error:  # a network that can't be built here has none either; the report shows the rest
            print(f"The report will show no maps of {name}. {error}")


def _check_same_data(breasts: pd.DataFrame, images: pd.DataFrame, competition_dir: Path) -> None:
    labels = breasts.prediction_id.map(images.drop_duplicates("prediction_id").set_index("prediction_id").cancer)
    differing = breasts.prediction_id[labels.to_numpy() != breasts.cancer.to_numpy()].tolist()
    if differing:
        raise PredictionError(
            f"{competition_dir}/train.csv lacks {len(differing)} of the runs' {len(breasts)} breasts, or labels them otherwise,"
            f" first {differing[0]}: give the competition_dir that they were trained on."
        )
