"""The items that one fold trains on and holds out: whole images, breasts, or patches around boxes."""

from dataclasses import dataclass

from utils.images.training_data import TrainingData
from utils.networks.auxiliary import SIZES
from utils.runs.config import TrainConfig
from utils.tables.vocabulary import Vocabulary
from utils.training.augment import Augment
from utils.training.dataset import ImageDataset, make_dataset
from utils.training.patches import PatchDataset


@dataclass(frozen=True)
class FoldData:
    """What a network of one fold learns from, and is evaluated on."""

    fold: int
    training_set: ImageDataset
    held_out_set: ImageDataset
    vocabulary: Vocabulary
    auxiliary_sizes: tuple[int, ...] = SIZES  # number of classes of each auxiliary target


def whole_images(config: TrainConfig, data: TrainingData, fold: int) -> FoldData:
    """Make the items of a fold, of images or breasts; the boxes of ``data`` are from `utils.images.boxes.to_picture`.

    The vocabulary includes sites and machines of other sets. Without them, an unseen machine would come to mean as much cancer
    as those sets have.
    """
    inside = data.inside(fold)
    vocabulary = Vocabulary.from_images(inside)
    training_set = make_dataset(config, inside, data.cache_dir, "train", vocabulary)
    held_out_set = make_dataset(config, data.held_out(fold), data.cache_dir, "train", vocabulary)
    training_set.augment = Augment(config.augment_strength)
    if data.boxes is not None and config.model.item == "image":
        training_set.add_boxes(data.boxes)
        held_out_set.add_boxes(data.boxes)
    return FoldData(fold, training_set, held_out_set, vocabulary)


def patches(config: TrainConfig, data: TrainingData, fold: int) -> FoldData:
    """Make the patches around the boxes of a fold's images."""
    inside = data.inside(fold)
    vocabulary = Vocabulary.from_images(inside)
    training_set = PatchDataset(config, data, inside, vocabulary)
    held_out_set = PatchDataset(config, data, data.held_out(fold), vocabulary)
    training_set.augment = Augment(config.augment_strength)
    return FoldData(fold, training_set, held_out_set, vocabulary, training_set.auxiliary_sizes)
