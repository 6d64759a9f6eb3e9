"""P2, the order half: block ids are a pure function of (seed, epoch, step)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.order import global_batch, micro_batches, permute, share, steps_per_epoch


@given(num_blocks=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_a_permutation_meets_every_block_once(num_blocks: int, key: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(num_blocks), num_blocks, key)), np.arange(num_blocks))


@given(
    num_blocks=st.integers(1, 100),
    global_batch_size=st.integers(1, 64),
    seed=st.integers(0, 2**32),
    num_processes=st.integers(1, 8),
)
def test_an_epoch_meets_every_block_once_however_it_is_shared(
    num_blocks: int, global_batch_size: int, seed: int, num_processes: int
) -> None:
    seen = []
    per_epoch = steps_per_epoch(num_blocks, global_batch_size)
    for step in range(per_epoch, 2 * per_epoch):
        epoch, ids = global_batch(step, num_blocks, global_batch_size, seed)
        assert epoch == 1
        shares = [share(ids, rank, num_processes) for rank in range(num_processes)]
        assert np.array_equal(np.concatenate(shares), ids)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        seen.append(ids)
    assert np.array_equal(np.sort(np.concatenate(seen)), np.arange(num_blocks))


@given(size=st.integers(1, 9), count=st.integers(0, 40))
def test_micro_batches_cut_a_share_without_loss(size: int, count: int) -> None:
    ids = np.arange(count)
    parts = micro_batches(ids, size)
    assert np.array_equal(np.concatenate(parts), ids)
    assert len(parts) == max(1, -(-count // size))
    assert all(len(part) <= size for part in parts)


def test_epochs_and_seeds_have_different_orders() -> None:
    orders = {global_batch(step, 1000, 1000, seed)[1].tobytes() for step in range(5) for seed in range(5)}
    assert len(orders) == 25


@pytest.mark.parametrize("num_blocks", [16, 100, 1000])
def test_every_block_is_equally_likely_at_every_position(num_blocks: int) -> None:
    """Chi-square over 10 positions x blocks, from 2,000 keys; the bound is 6 standard deviations."""
    keys = 2000
    counts = np.zeros((10, num_blocks))
    for key in range(keys):
        counts[np.arange(10), permute(np.arange(10), num_blocks, key)] += 1
    expected = keys / num_blocks
    chi_square = ((counts - expected) ** 2 / expected).sum(axis=1)
    degrees = num_blocks - 1
    assert np.all(np.abs(chi_square - degrees) < 6 * np.sqrt(2 * degrees))


def test_neighbours_are_not_neighbours_after_the_permutation() -> None:
    """The rank correlation of position and block is that of chance: within 5 / sqrt(n)."""
    n = 10_000
    correlations = [np.corrcoef(np.arange(n), permute(np.arange(n), n, key))[0, 1] for key in range(20)]
    assert np.max(np.abs(correlations)) < 5 / np.sqrt(n)


def test_a_late_step_costs_what_an_early_one_costs() -> None:
    """No epoch is materialised: a trillion blocks would not fit in memory."""
    epoch, ids = global_batch(10**9, 10**12, 256, seed=0)
    assert epoch == 10**9 // steps_per_epoch(10**12, 256)
    assert len(set(ids.tolist())) == 256
    assert ids.min() >= 0
    assert ids.max() < 10**12
