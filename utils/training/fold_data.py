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
    """The items of one fold, and their vocabulary and auxiliary targets.

    Parameters
    ----------
    fold : int
        Number of the held-out fold.
    training_set, held_out_set : ImageDataset
    vocabulary : Vocabulary
    auxiliary_sizes : tuple of int
        Number of classes of each auxiliary target.
    """

    fold: int
    training_set: ImageDataset
    held_out_set: ImageDataset
    vocabulary: Vocabulary
    auxiliary_sizes: tuple[int, ...] = SIZES


def whole_images(config: TrainConfig, data: TrainingData, fold: int) -> FoldData:
    """Make the items of a fold, of images or breasts; the boxes of ``data`` are from `utils.images.boxes.to_picture`.

    The vocabulary includes sites and machines of other sets. Without them, an unseen machine would come to mean as much cancer
    as those sets have.
    """
    inside, held_out = data.inside(fold), data.held_out(fold)
    vocabulary = Vocabulary.from_images(inside)
    augment = Augment(config.augment_strength)
    training_set = make_dataset(config, inside, data.cache_dir, "train", vocabulary, augment, data.boxes)
    held_out_set = make_dataset(config, held_out, data.cache_dir, "train", vocabulary, boxes=data.boxes)
    return FoldData(fold, training_set, held_out_set, vocabulary)


def patches(config: TrainConfig, data: TrainingData, fold: int) -> FoldData:
    """Make the patches around the boxes of a fold's images."""
    inside, held_out = data.inside(fold), data.held_out(fold)
    vocabulary = Vocabulary.from_images(inside)
    common = (data.cache_dir, vocabulary, data.boxes, config.patch_size)
    training_set = PatchDataset(inside, *common, Augment(config.augment_strength), config.seed)
    held_out_set = PatchDataset(held_out, *common, None, config.seed)
    return FoldData(fold, training_set, held_out_set, vocabulary, training_set.auxiliary_sizes)
