"""Parts of a report that run the networks: maps on images, boxes, and predictions for rows that trained them."""

import contextlib
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from utils.core.errors import KitError
from utils.evaluation.explanation import ExplanationError, check_network, choose_examples, explain_run, name_method
from utils.evaluation.figures import show_explanations
from utils.evaluation.localisation import BoxedImages, draw_boxed_images
from utils.evaluation.marks import marks_table
from utils.evaluation.material import Material
from utils.evaluation.pointing import pointing_table
from utils.evaluation.training_rows import predict_training_rows
from utils.metrics.thresholds import CHOICES
from utils.runs.errors import TrainingError
from utils.runs.run import Run

SHOWN_EXAMPLES = 4  # of each kind of decision
PROBABILITY = "out-of-fold probability of the breast, not calibrated"
BOX_IMAGES = 200  # images with boxes to measure maps and predicted boxes on, at most


def say_what_has_no_maps(runs: dict[str, Path]) -> None:
    """Print which runs have networks without maps, and why."""
    for name, run in runs.items():
        try:
            check_network(Run(run).config)
        except KitError as error:  # a network that cannot be built here has no maps either; the report shows the rest
            print(f"The report will show no maps of {name}. {error}")


def trained_rows(material: Material) -> dict[str, pd.DataFrame]:
    """Predict again the breasts that trained each run whose images are in the cache."""
    tuned = material.tuned
    return {
        name: predict_training_rows(
            run, material.readable_images[run], material.inputs_of[run].cache_dir, tuned.aggregation, tuned.one_image
        )
        for name, run in material.runs.items()
        if material.has_pictures(run)
    }


def explanations(
    material: Material, name: str, box_images: int = BOX_IMAGES, seed: int = 0
) -> list[tuple[Figure | pd.DataFrame | str, str]]:
    """Show what a run's logits rest on, and compare it with true boxes if there are any.

    Parameters
    ----------
    name : str
        A key of ``material.runs``.
    box_images : int
        Limit of images with boxes to measure maps and predicted boxes on.
    seed : int
        Seed of the draw of these images, and of the bootstrap.

    Returns
    -------
    list of tuple
        Figures and tables with their captions; a sentence instead if the cache lacks images, or the network has no map.
    """
    run = material.runs[name]
    if not material.has_pictures(run):
        return [(f"{name}: the cache lacks its images; give the cache_dir that it was trained on.", "")]
    boxed = _boxed_images(material, run, box_images, seed)
    try:
        shown = [_gallery(material, name)]
        shown += _pointing(material, name, boxed, seed) if boxed else []
    except ExplanationError as error:
        shown = [(f"{name}: {error}", "")]
    return shown + (_marks(material, name, boxed, seed) if boxed and boxed.config.box_weight else [])


def _gallery(material: Material, name: str) -> tuple[Figure, str]:
    """Show a run's surest decisions, right and wrong, with their maps on the original images."""
    run, curve = material.runs[name], material.curves[name]
    threshold = CHOICES[material.tuned.choice](curve.cancer, curve.probability)
    examples = choose_examples(curve, material.readable_images[run], threshold, SHOWN_EXAMPLES)
    figure = _show(material, name, examples.assign(threshold=threshold))
    at = f"at its own threshold of {threshold:.3f}, chosen on all its out-of-fold breasts"
    maps = f"Maps of {name}: {name_method(Run(run).config)}."
    return figure, f"{name}: the surest decisions, right and wrong, {at}. {maps}"


def _pointing(material: Material, name: str, boxed: BoxedImages, seed: int = 0) -> list[tuple[Figure | pd.DataFrame, str]]:
    """Play the pointing game on all drawn images and on those with cancer; return tables, and a figure of examples."""
    hits = boxed.point()
    title = f"{name}: how often the strongest place of a map lies in a true box"
    tables = [(pointing_table(hits, seed), f"{title}. {boxed.description}")]
    with_cancer = hits[hits.index.isin(material.images.image_id[material.images.cancer == 1])]
    if 0 < len(with_cancer) < len(hits):
        tables.append((pointing_table(with_cancer, seed), f"{title}, of images with cancer alone."))
    examples = boxed.examples(hits, SHOWN_EXAMPLES)
    probability = material.curves[name].set_index("prediction_id").probability
    figure = _show(material, name, examples.assign(probability=probability.loc[examples.prediction_id].to_numpy()))
    said = f"{name}: images drawn at random whose map points into a true box, and others; no threshold decides."
    return [*tables, (figure, said)]


def _marks(material: Material, name: str, boxed: BoxedImages, seed: int = 0) -> list[tuple[pd.DataFrame | str, str]]:
    """Compare the boxes that a run predicted with the true ones; return a sentence if they are unreadable."""
    try:
        table = marks_table(boxed.measure_marks(), seed)
    except TrainingError as error:
        return [(f"{name}: {error}", "")]
    return [(table, f"{name}: one predicted box per image against the true boxes. {boxed.description}")]


def _boxed_images(material: Material, run: Path, most: int, seed: int) -> BoxedImages | None:
    """Draw images with true boxes to measure a run on; None if there are none."""
    if material.boxes is None:
        return None
    return draw_boxed_images(run, material.readable_images[run], material.inputs_of[run].cache_dir, material.boxes, most, seed)


def _show(material: Material, name: str, examples: pd.DataFrame) -> Figure:
    """Show images with their maps, true boxes and predicted boxes."""
    run = material.runs[name]
    inputs, boxes = material.inputs_of[run], material.boxes
    maps = explain_run(run, material.readable_images[run], inputs.cache_dir, examples.image_id)
    if Run(run).config.box_weight:
        with contextlib.suppress(TrainingError):  # `_marks` shows the error
            predicted = Run(run).marks().assign(predicted=True)
            boxes = pd.concat([predicted, *([] if boxes is None else [boxes.assign(predicted=False)])], ignore_index=True)
    return show_explanations(examples, maps, inputs, boxes, f"{name}: {PROBABILITY}")
