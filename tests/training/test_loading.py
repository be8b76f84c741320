"""Facts about batches: their order, how items are joined and split, and the loader's processes."""

import os
import signal
import time

import numpy as np
import psutil
import pytest
import torch

from utils.tables.vocabulary import METADATA, Vocabulary
from utils.training import loading
from utils.training.augment import Augment
from utils.training.dataset import BreastDataset, ImageDataset
from utils.training.loading import (
    PER_PICTURE,
    LoadingError,
    ShareSampler,
    StepSampler,
    collate,
    explained,
    make_loader,
    split_batch,
)

SHARES = [0.02, 0.1, 0.3, 0.5, 0.9]


@pytest.fixture
def vocabulary(images):
    return Vocabulary.from_images(images)


def labels_of(positives: int, negatives: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat([1, 0], [positives, negatives]))


def steps_of(labels: np.ndarray, share: float | None, batch_size: int, rank: int = 0, world_size: int = 1) -> list[list[int]]:
    order = ShareSampler(labels, share, seed=3, batch_size=batch_size)
    return list(StepSampler(order, batch_size, rank, world_size))


# Order


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_sampler_draws_the_share_of_positives(share):
    labels = np.array([1] * 10 + [0] * 190)
    drawn = labels[list(ShareSampler(labels, share, seed=0, batch_size=20))]
    assert len(drawn) == 200 and drawn.mean() == pytest.approx(share)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("batch_size", [4, 7, 16])
@pytest.mark.parametrize("positives", [1, 13, 60])
def test_every_step_has_a_positive_and_its_share_give_or_take_one(share, batch_size, positives):
    labels = labels_of(positives, 103)
    steps = steps_of(labels, share, batch_size)
    found = np.array([labels[step].sum() for step in steps])
    assert {len(step) for step in steps} == {batch_size} and len(steps) == len(labels) // batch_size
    assert (found >= 1).all() and (abs(found - max(1, share * batch_size)) <= 1).all()


def test_positives_lie_anywhere_in_their_step():
    labels = labels_of(20, 80)
    places = {tuple(labels[step]) for step in steps_of(labels, 0.25, 4)}
    assert len(places) == 4


def test_sampler_repeats_nothing_before_all_were_drawn():
    labels = np.array([1] * 10 + [0] * 90)
    counts = np.bincount(list(ShareSampler(labels, 0.5, seed=0, batch_size=10)), minlength=100)
    assert set(counts[:10]) == {5} and set(counts[10:]) <= {0, 1}


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1], [0, 1, 0]])
def test_sampler_without_a_share_or_a_class_shuffles(labels):
    share = None if len(set(labels)) == 2 else 0.5
    assert sorted(ShareSampler(np.array(labels), share, seed=0, batch_size=2)) == list(range(len(labels)))


@pytest.mark.parametrize("share", [None, 0.5])
def test_sampler_order_hangs_on_seed_and_epoch(share):
    sampler, twin, other = (ShareSampler(labels_of(20, 30), share, seed, batch_size=5) for seed in (1, 1, 2))
    first = list(sampler)
    assert first == list(twin) and first != list(other)
    twin.epoch = 1
    assert first != list(twin)


def test_fewer_items_than_a_step_are_one_step():
    labels = labels_of(2, 3)
    assert [sorted(step) for step in steps_of(labels, None, 8)] == [[0, 1, 2, 3, 4]]
    assert [labels[step].sum() for step in steps_of(labels, 0.4, 8)] == [2]


def test_incomplete_last_step_is_left_out():
    steps = steps_of(labels_of(5, 18), None, 10)
    assert [len(step) for step in steps] == [10, 10]


@pytest.mark.parametrize("share", [None, 0.25])
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_together_do_the_steps_of_one(share, world_size):
    labels = labels_of(9, 44)
    alone = steps_of(labels, share, 12)
    parts = [steps_of(labels, share, 12, rank, world_size) for rank in range(world_size)]
    together = [np.stack(step, axis=1).ravel().tolist() for step in zip(*parts, strict=True)]  # one item of each in turn
    assert together == alone and len(alone) == 4
    assert len(StepSampler(ShareSampler(labels, share, 3, 12), 12, 1, world_size)) == len(alone)


# Joining and splitting


@pytest.fixture
def breasts(images, cache_dir, vocabulary):
    return BreastDataset(images, cache_dir, "train", vocabulary)


def test_batch_joins_breasts_of_any_length(breasts):
    items = [breasts[index] for index in (3, 0, 7, 2, 9)]
    batch = collate(items)
    lengths = [len(item["images"]) for item in items]
    assert len(set(lengths)) > 1
    assert batch["lengths"].tolist() == lengths and batch["index"].tolist() == [3, 0, 7, 2, 9]
    assert batch["images"].shape == (sum(lengths), 1, 64, 48) and batch["images"].dtype == torch.uint8
    assert batch["metadata"].shape == (sum(lengths), len(METADATA))
    assert batch["label"].dtype == torch.float32 and batch["label"].tolist() == [item["label"] for item in items]
    assert batch["auxiliary"].shape[0] == len(items) and batch["box"].shape == (len(items), 4)
    for item, pictures in zip(items, batch["images"].split(lengths), strict=True):
        assert torch.equal(item["images"], pictures)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("kind", [ImageDataset, BreastDataset])
def test_parts_of_a_batch_are_its_items_and_rejoin_to_it(images, cache_dir, vocabulary, kind, size):
    dataset = kind(images, cache_dir, "train", vocabulary)
    items = [dataset[index] for index in range(5)]
    batch = collate(items)
    parts = split_batch(batch, size)
    assert len(parts) == -(-5 // size)
    for number, part in enumerate(parts):
        wanted = collate(items[number * size : (number + 1) * size])
        assert part.keys() == wanted.keys() == batch.keys()
        assert all(torch.equal(part[key].nan_to_num(), wanted[key].nan_to_num()) for key in part)
    for key, whole in batch.items():
        assert torch.equal(torch.cat([part[key] for part in parts]).nan_to_num(), whole.nan_to_num()), key
    assert all(len(part[key]) == part["lengths"].sum() for part in parts for key in PER_PICTURE)


# The loader


def test_loader_gives_every_item_once_whatever_the_workers(images, cache_dir, vocabulary):
    dataset = ImageDataset(images, cache_dir, "train", vocabulary)
    for workers in (0, 2):
        seen = torch.cat([batch["index"] for batch in make_loader(dataset, 8, workers)])
        assert seen.tolist() == list(range(len(dataset)))


def test_loader_gives_the_steps_of_its_sampler(images, cache_dir, vocabulary):
    dataset = ImageDataset(images, cache_dir, "train", vocabulary)
    sampler = StepSampler(ShareSampler(dataset.labels, 0.5, 0, 8), 8)
    loader = make_loader(dataset, sampler)
    assert [batch["index"].tolist() for batch in loader] == list(sampler) and len(loader) == len(sampler)


def test_processes_that_live_on_see_the_next_epoch(images, cache_dir, vocabulary):
    dataset = ImageDataset(images.head(6), cache_dir, "train", vocabulary)
    dataset.augment = Augment()
    loader, here = make_loader(dataset, 2, num_workers=1), make_loader(dataset, 2)
    epochs = []
    for dataset.epoch in range(3):
        epochs.append(torch.cat([batch["images"] for batch in loader]))
        assert torch.equal(epochs[-1], torch.cat([batch["images"] for batch in here]))
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])


def test_loader_keeps_its_processes(images, cache_dir, vocabulary):
    loader = make_loader(ImageDataset(images.head(4), cache_dir, "train", vocabulary), 2, num_workers=1)
    processes = []
    for _ in range(2):
        assert len(list(loader)) == 2
        processes.append([worker.pid for worker in loader._iterator._workers])
    assert processes[0] == processes[1]


class Failing(ImageDataset):
    """A data set whose items end their process, or never come."""

    def __init__(self, *arguments, fail):
        super().__init__(*arguments)
        self.fail = fail

    def __getitems__(self, indices):
        self.fail()
        return super().__getitems__(indices)


def batches_of(images, cache_dir, vocabulary, fail=lambda: None):
    return make_loader(Failing(images.head(6), cache_dir, "train", vocabulary, fail=fail), 2, num_workers=2)


def children():
    return {child.pid for child in psutil.Process().children()}


def test_batch_without_shared_memory_is_an_error_with_the_remedy_and_ends_the_processes(
    images, cache_dir, vocabulary, monkeypatch
):
    def full(tensor):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    loader, before = batches_of(images, cache_dir, vocabulary), children()
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(LoadingError, match="got no shared memory .unable.*--shm-size 8g.*lower num_workers"):
        list(loader)
    assert children() <= before


@pytest.mark.parametrize("number", [signal.SIGBUS, signal.SIGKILL])
def test_process_that_dies_is_an_error_with_the_remedy(images, cache_dir, vocabulary, number):
    def die():
        time.sleep(0.2)  # the loader has started by then
        os.kill(os.getpid(), number)

    loader = batches_of(images, cache_dir, vocabulary, die)
    with pytest.raises(LoadingError, match=f"died .{number.name}.*--shm-size 8g"):
        list(loader)


def test_process_that_dies_while_the_reader_does_something_else_is_explained_too(images, cache_dir, vocabulary):
    loader = batches_of(images, cache_dir, vocabulary)
    next(iter(loader))
    with pytest.raises(LoadingError, match="died .SIGKILL.*--shm-size 8g"), explained(loader):
        os.kill(loader._iterator._workers[0].pid, signal.SIGKILL)
        time.sleep(10)  # torch's handler of the signal ends it


def test_loader_that_gives_no_batch_is_an_error_with_the_remedy(images, cache_dir, vocabulary, monkeypatch):
    monkeypatch.setattr(loading, "PATIENCE", 0.2)
    loader = batches_of(images, cache_dir, vocabulary, lambda: time.sleep(1))
    with pytest.raises(LoadingError, match="No batch came within .*--shm-size 8g"):
        list(loader)


def test_other_errors_of_a_loader_stay_what_they_are(images, cache_dir, vocabulary):
    def fail():
        raise RuntimeError("of the data set")

    with pytest.raises(RuntimeError, match="of the data set"):
        list(batches_of(images, cache_dir, vocabulary, fail))
