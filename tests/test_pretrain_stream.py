"""The images that pretraining sees: every one once an epoch, the same wherever it resumes, and shared by workers."""

from itertools import islice

import numpy as np
import pytest

from d3hr_ray.config import DataConfig, RunError
from d3hr_ray.pretraining import stream as streams
from d3hr_ray.pretraining.claim import list_classes
from d3hr_ray.pretraining.stream import ImageStream


def take(stream, batch, start, count):
    return [b.indices.tolist() for b in islice(stream.batches(batch, start), count)]


@pytest.mark.parametrize("cached", [True, False])
def test_streams_show_every_image_once_an_epoch_and_resume_anywhere(cats_and_dogs, monkeypatch, cached):
    monkeypatch.setattr(streams, "SHARD", 8)
    monkeypatch.setattr(streams, "WINDOW", 3)
    if not cached:
        monkeypatch.setattr(streams, "CACHE_BYTES", 0)
    listing = list_classes(DataConfig(cats_and_dogs))
    stream = ImageStream(listing, 16, seed=3)
    batches = list(islice(stream.batches(10), 16))
    epochs = [sorted(i for b in batches[at : at + 8] for i in b.indices.tolist()) for at in (0, 8)]
    broken = {2, 42}
    for epoch in epochs:  # a broken image's place is taken by another, so 2 of 80 come twice
        assert set(epoch) == set(range(80)) - broken and len(epoch) == 80
    assert [b.indices.tolist() for b in batches[:8]] != [b.indices.tolist() for b in batches[8:]]
    assert set(stream.rejected) == {"cat/02.png", "dog/02.png"}
    for b in batches:
        assert ((b.pixels[:, 0, 0, 0] >= 100) == (b.labels == 1)).all() and (b.labels == b.indices // 40).all()
    for start in (1, 7, 13):
        assert take(ImageStream(listing, 16, seed=3), 10, start, 3) == [
            b.indices.tolist() for b in batches[start : start + 3]
        ]


def test_cached_and_streamed_images_are_the_same(cats_and_dogs, monkeypatch):
    listing = list_classes(DataConfig(cats_and_dogs))
    cached = next(ImageStream(listing, 16, seed=0).batches(16))
    monkeypatch.setattr(streams, "CACHE_BYTES", 0)
    streamed = next(ImageStream(listing, 16, seed=0).batches(16))
    assert np.array_equal(cached.pixels, streamed.pixels) and np.array_equal(cached.labels, streamed.labels)


def test_workers_share_the_images(cats_and_dogs, monkeypatch):
    monkeypatch.setattr(streams, "SHARD", 8)
    listing = list_classes(DataConfig(cats_and_dogs))
    shares = [take(ImageStream(listing, 16, 0, rank, 2), 40, 0, 1)[0] for rank in (0, 1)]
    assert set(shares[0]) | set(shares[1]) == set(range(80)) - {2, 42}
    assert not set(shares[0]) & set(shares[1])
    with pytest.raises(ValueError, match="--workers 11"):
        ImageStream(listing, 16, 0, 10, 11)


@pytest.mark.parametrize("cached", [True, False])
def test_statistics_are_of_every_image_that_can_be_read_once(cats_and_dogs, monkeypatch, cached):
    """A batch of broken images alone, such as a last one of one image, ended pretraining after hours."""
    if not cached:
        monkeypatch.setattr(streams, "CACHE_BYTES", 0)
    stream = ImageStream(list_classes(DataConfig(cats_and_dogs)), 16, seed=0)
    for size in (1, 3, 64):
        batches = list(stream.fixed(size, np.arange(80)))
        assert [i for b in batches for i in b.indices.tolist()] == sorted(set(range(80)) - {2, 42})
        assert all(((b.pixels[:, 0, 0, 0] >= 100) == (b.labels == 1)).all() for b in batches)
    with pytest.raises(RunError, match=r"none of 2 images can be read; see cat/02.png"):
        list(stream.fixed(2, np.array([2, 42])))


def test_statistics_of_sorted_data_are_of_all_classes(cats_and_dogs):
    """And of shuffled data of the first images, as ever."""
    stream = ImageStream(list_classes(DataConfig(cats_and_dogs)), 16, seed=0)
    assert stream.spread(80).tolist() == stream.spread(100).tolist() == list(range(80))
    assert stream.spread(41).tolist() == list(range(41))
    spread = stream.spread(16)
    assert spread.tolist() == [*range(8), *range(72, 80)]
