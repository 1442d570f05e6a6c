"""The batches in which missing samples are drawn, shared by processes."""

import pytest

from vqvae2_fast.sampling.drawing import Batches

MISSING = [range(0, 5), range(6, 12), range(20, 21)]


def test_batches_hold_consecutive_samples_up_to_their_size():
    expected = [range(0, 4), range(4, 5), range(6, 10), range(10, 12), range(20, 21)]
    assert list(Batches(MISSING, 4)) == expected


@pytest.mark.parametrize(("size", "whole"), [(1, 3), (5, 3), (6, 6)])
def test_batches_hold_whole_groups(size, whole):
    batches = list(Batches([range(0, 12)], size, group=3))
    assert batches == [range(start, start + whole) for start in range(0, 12, whole)]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_processes_take_turns_and_miss_nothing(count):
    own = [list(Batches(MISSING, 2, rank=rank, count=count)) for rank in range(count)]
    whole = list(Batches(MISSING, 2))
    assert own == [whole[rank::count] for rank in range(count)]
    for rank, batches in enumerate(own):
        samples = Batches(MISSING, 2, rank=rank, count=count).num_samples
        assert samples == sum(map(len, batches))


def test_billions_of_samples_are_counted_at_once():
    batches = Batches([range(10**12)], 128, rank=1, count=2)
    assert batches.num_samples == 5 * 10**11
    assert next(iter(batches)) == range(128, 256)
