"""P2, the order half: block ids are a pure function of (seed, epoch, step)."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.batches.hashing import key64
from data.batches.order import Order, blocks_per_epoch, micro_batches, mixture, permute, permuted_range


def steps_per_epoch(num_blocks: int, global_batch_size: int) -> int:
    return -(-num_blocks // global_batch_size)


def global_batch(step: int, num_blocks: int, global_batch_size: int, seed: int) -> tuple[int, np.ndarray]:
    passes, ids = Order((num_blocks,), (1.0,), global_batch_size, seed).global_batch(step)
    (epoch,) = set(passes.tolist())
    return epoch, ids


@given(num_blocks=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_a_permutation_meets_every_block_once(num_blocks: int, key: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(num_blocks), num_blocks, key)), np.arange(num_blocks))


@given(data=st.data(), num_blocks=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_a_position_has_the_same_block_whichever_others_are_asked_for(
    data: st.DataObject, num_blocks: int, key: int
) -> None:
    whole = permute(np.arange(num_blocks), num_blocks, key)
    some = np.array(data.draw(st.lists(st.integers(0, num_blocks - 1), min_size=1, max_size=20)))
    assert np.array_equal(permute(some, num_blocks, key), whole[some])
    first, end = min(some), max(some) + 1
    assert np.array_equal(permuted_range(first, end, num_blocks, key), whole[first:end])


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
        batches = [micro_batches((ids, ids), rank, num_processes, global_batch_size) for rank in range(num_processes)]
        shares = [ids for ((_, ids),) in batches]
        assert np.array_equal(np.concatenate(shares), ids)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        seen.append(ids)
    assert np.array_equal(np.sort(np.concatenate(seen)), np.arange(num_blocks))


@given(size=st.integers(1, 9), count=st.integers(0, 40))
def test_micro_batches_cut_a_share_without_loss(size: int, count: int) -> None:
    ids = np.arange(count)
    parts = [part for _, part in micro_batches((ids, ids), 0, 1, size)]
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


def _excess(values: np.ndarray, num_kinds: int) -> float:
    """Chi-square against values that are all alike, in standard deviations over its mean."""
    counts = np.bincount(values, minlength=num_kinds)
    expected = len(values) / num_kinds
    chi_square = ((counts - expected) ** 2 / expected).sum()
    return float((chi_square - (num_kinds - 1)) / np.sqrt(2 * (num_kinds - 1)))


@pytest.mark.parametrize("num_blocks", [2, 3, 4, 5, 6])
def test_every_order_of_few_blocks_is_equally_likely(num_blocks: int) -> None:
    """All 2 to 720 of them, over 20,000 keys that follow each other; the bound is 5 standard deviations."""
    orders = [tuple(permute(np.arange(num_blocks), num_blocks, key).tolist()) for key in range(20_000)]
    numbers = {order: i for i, order in enumerate(itertools.permutations(range(num_blocks)))}
    assert _excess(np.array([numbers[order] for order in orders]), len(numbers)) < 5


def test_as_many_orders_of_eight_blocks_are_met_as_chance_would_meet() -> None:
    """Of 40,320, 40,000 draws meet 40,320 (1 - exp(-40,000 / 40,320)) = 25,369, give or take 62."""
    met = {permute(np.arange(8), 8, key64(1, key)).tobytes() for key in range(40_000)}
    assert abs(len(met) - 25_369) < 5 * 62


@pytest.mark.parametrize("num_blocks", [8, 16, 32, 64, 256, 257, 1000])
def test_pairs_of_positions_hold_unrelated_blocks(num_blocks: int) -> None:
    """The difference of the blocks at two positions takes every value alike, over 4,000 keys, for 30 pairs."""
    orders = np.stack([permute(np.arange(num_blocks), num_blocks, key64(2, key)) for key in range(4000)])
    random = np.random.default_rng(0)
    pairs = [random.choice(num_blocks, 2, replace=False) for _ in range(30)]
    excess = [_excess((orders[:, i] - orders[:, j]) % num_blocks - 1, num_blocks - 1) for i, j in pairs]
    assert max(excess) < 6
    assert abs(np.mean(excess)) < 1


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


def test_each_thousand_slots_of_a_mixture_hold_the_weights_exactly_in_an_order_of_their_own() -> None:
    sources, indices = mixture(np.arange(5000), (0.7, 0.2, 0.1), seed=3)
    for thousand in sources.reshape(5, 1000):
        assert np.bincount(thousand).tolist() == [700, 200, 100]
    assert len({thousand.tobytes() for thousand in sources.reshape(5, 1000)}) == 5
    for source, count in enumerate((3500, 1000, 500)):
        assert np.array_equal(np.sort(indices[sources == source]), np.arange(count))


@settings(max_examples=20)
@given(
    sizes=st.lists(st.integers(20, 60), min_size=2, max_size=3),
    seed=st.integers(0, 100),
    global_batch_size=st.integers(20, 50),
)
def test_a_mixture_sees_each_source_in_whole_passes(sizes: list[int], seed: int, global_batch_size: int) -> None:
    weights = tuple(range(1, len(sizes) + 1))
    order = Order(tuple(sizes), tuple(map(float, weights)), global_batch_size, seed)
    steps = -(-1500 // global_batch_size)
    pairs = [
        (p, i) for step in range(steps) for p, i in zip(*map(np.ndarray.tolist, order.global_batch(step)), strict=True)
    ]
    assert len(set(pairs)) == len(pairs)  # no block twice in one pass
    firsts = np.cumsum([0, *sizes])
    for source, size in enumerate(sizes):
        mine = [(p, i) for p, i in pairs if firsts[source] <= i < firsts[source + 1]]
        complete = {p for p, _ in mine if p < max(p for p, _ in mine) - 1000 // size - 1}
        for number in complete:
            assert sum(p == number for p, _ in mine) == size
    drawn = order.draws_by_source(steps)
    assert drawn.sum() == len(pairs)
    assert drawn.tolist() == [sum(firsts[s] <= i < firsts[s + 1] for _, i in pairs) for s in range(len(sizes))]


def test_an_epoch_of_a_mixture_ends_with_the_first_or_the_last_source() -> None:
    """100 blocks at 80 % last 125 slots; 400 at 20 % last 2,000."""
    assert blocks_per_epoch((100, 400), (0.8, 0.2), ends_with_first=True) == 125
    assert blocks_per_epoch((100, 400), (0.8, 0.2), ends_with_first=False) == 2000
    assert blocks_per_epoch((100,), (1.0,), ends_with_first=False) == 100


@given(num_blocks=st.integers(1, 500), global_batch_size=st.integers(1, 40), seed=st.integers(0, 99))
def test_batches_by_length_still_meet_every_block_once(num_blocks: int, global_batch_size: int, seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 128, num_blocks)
    order = Order((num_blocks,), (1.0,), global_batch_size, seed, lengths)
    steps = steps_per_epoch(num_blocks, global_batch_size)
    batches = [order.global_batch(step)[1] for step in range(steps, 2 * steps)]
    assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(num_blocks))
    assert max(map(len, batches)) <= global_batch_size


def test_batches_by_length_hold_blocks_of_similar_length() -> None:
    lengths = np.random.default_rng(0).integers(1, 129, 10_000)
    padding = []
    for known in (None, lengths):
        order = Order((len(lengths),), (1.0,), 32, 0, known)
        batches = [lengths[order.global_batch(step)[1]] for step in range(300)]
        padding.append(sum(b.max() * len(b) - b.sum() for b in batches) / sum(b.sum() for b in batches))
    without, with_lengths = padding
    assert without > 0.9  # lengths from 1 to 128: as much padding as text
    assert with_lengths < 0.15
