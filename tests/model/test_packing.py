"""Rows, updates and micro-batches, by values worked out by hand and by properties that hold for all."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.data import Sample, sample
from worker.packing import Row, collate, counts, micro_batches, updates


def plain(*ids: int) -> Sample:
    """A sample of which all is trained (but the first, which nothing precedes)."""
    return sample(ids, [True] * len(ids))


def test_a_packed_row_restarts_positions_and_trains_no_samples_first_token() -> None:
    first = sample([5, 6, 7], [False, False, True])
    batch = collate([[first, plain(8, 9)], [plain(1, 2, 3, 4)]], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [1, 2, 3, 4, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]]
    # At each position stands what comes next; 8 is never a target, though 7 stands before it.
    assert batch.labels.tolist() == [[-100, 7, -100, 9, -100], [2, 3, 4, -100, -100]]
    assert batch.attention_mask is None
    assert (batch.tokens, batch.trained) == (9, 5)


def test_padding_behind_packed_samples_is_a_sample_of_its_own() -> None:
    batch = collate([[plain(1, 2), plain(3, 4)], [plain(1, 2, 3, 4, 5, 6)]], pad_id=9)
    assert batch.input_ids[0].tolist() == [1, 2, 3, 4, 9, 9]
    assert batch.position_ids[0].tolist() == [0, 1, 0, 1, 0, 1]
    assert batch.labels[0].tolist() == [2, -100, 4, -100, -100, -100]


def test_texts_are_laid_end_to_end_and_cut_where_a_row_is_full() -> None:
    samples = [plain(10, 11, 12, 13, 14), plain(20, 21), plain(30, 31, 32)]
    (rows,) = updates(samples, seed=0, epoch=0, batch=99, pack_to=4, split=True)
    assert [sum(map(len, row)) for row in rows] == [4, 4, 2]
    flat = [int(i) for row in rows for s in row for i in s.ids]
    assert Counter(flat) == Counter([10, 11, 12, 13, 14, 20, 21, 30, 31, 32])
    for row in rows:
        for piece in row:
            assert not piece.trained[0]
            assert piece.trained[1:].all()


def test_samples_are_fitted_so_that_full_rows_come_about() -> None:
    # Lengths 6 5 5 4 2 2 at a capacity of 8: best fit decreasing makes 6+2, 5+2, 5, 4 of them, which is the least.
    samples = [sample([n] * n, [True] * n) for n in (4, 2, 5, 6, 5, 2)]
    (rows,) = updates(samples, seed=3, epoch=0, batch=99, pack_to=8)
    assert sorted(sorted((len(s) for s in row), reverse=True) for row in rows) == [[4], [5], [5, 2], [6, 2]]


def test_a_sample_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="a sample of 9 tokens does not fit into a row of 8"):
        updates([sample([1] * 9, [True] * 9)], seed=0, epoch=0, batch=1, pack_to=8)


def test_ranks_take_rows_of_like_length_the_longest_first() -> None:
    update: list[Row] = [[sample([n] * n, [True] * n)] for n in (2, 9, 4, 7, 3)]
    taken = [micro_batches(update, rank=rank, world=2, micro_batch=1, pad_id=0) for rank in (0, 1)]
    assert [[batch.input_ids.shape[1] for batch in batches] for batches in taken] == [[9, 4, 2], [7, 3, 1]]
    # The last rank has nothing left, and takes part with padding of which nothing is trained.
    assert (taken[1][2].tokens, taken[1][2].trained) == (0, 0)


def test_a_short_update_is_made_up_to_the_number_of_micro_batches_asked_for() -> None:
    batches = micro_batches([[plain(1, 2)]], rank=0, world=1, micro_batch=2, pad_id=0, count=3)
    assert [batch.trained for batch in batches] == [1, 0, 0]


lengths = st.lists(st.integers(1, 12), min_size=1, max_size=40)


def numbered(sizes: list[int]) -> list[Sample]:
    return [sample([n] * size, [True] * size) for n, size in enumerate(sizes)]


def shape(rows: list[list[Row]]) -> list[list[list[int]]]:
    return [[[int(s.ids[0]) for s in row] for row in update] for update in rows]


@given(lengths, st.integers(0, 2**32 - 1), st.integers(0, 50), st.integers(1, 5), st.sampled_from([None, 12, 30]))
def test_an_epoch_has_every_sample_once_and_no_row_over_its_length(
    sizes: list[int], seed: int, epoch: int, batch: int, pack_to: int | None
) -> None:
    samples = numbered(sizes)
    rows = updates(samples, seed=seed, epoch=epoch, batch=batch, pack_to=pack_to)
    seen = Counter(id(s) for update in rows for row in update for s in row)
    assert seen == Counter(map(id, samples))
    assert all(len(update) == batch for update in rows[:-1])
    assert 1 <= len(rows[-1]) <= batch
    if pack_to is None:
        assert all(len(row) == 1 for update in rows for row in update)
    else:
        assert all(sum(map(len, row)) <= pack_to for update in rows for row in update)
    assert shape(rows) == shape(updates(samples, seed=seed, epoch=epoch, batch=batch, pack_to=pack_to))


@given(lengths, st.integers(0, 1000), st.integers(2, 20))
def test_texts_laid_end_to_end_lose_no_token_and_fill_all_rows_but_the_last(
    sizes: list[int], seed: int, capacity: int
) -> None:
    rows = [
        row for u in updates(numbered(sizes), seed=seed, epoch=0, batch=3, pack_to=capacity, split=True) for row in u
    ]
    seen = Counter(int(i) for row in rows for s in row for i in s.ids)
    assert seen == Counter({n: size for n, size in enumerate(sizes)})
    assert all(sum(map(len, row)) == capacity for row in rows[:-1])


@settings(max_examples=60)
@given(lengths, st.integers(1, 3), st.integers(1, 4), st.sampled_from([None, 30]))
def test_any_number_of_ranks_and_any_accumulation_see_the_same_rows(
    sizes: list[int], world: int, micro_batch: int, pack_to: int | None
) -> None:
    update = updates(numbered(sizes), seed=1, epoch=2, batch=12, pack_to=pack_to)[0]
    parts = [micro_batches(update, rank=r, world=world, micro_batch=micro_batch, pad_id=0) for r in range(world)]
    assert len({len(part) for part in parts}) == 1

    def labelled(batches: list[object]) -> Counter[tuple[int, int, int]]:
        return Counter(
            (int(i), int(p), int(label))
            for b in batches
            for i, p, label in zip(b.input_ids.flatten(), b.position_ids.flatten(), b.labels.flatten(), strict=True)
            if label != -100
        )

    whole = collate(update, pad_id=0)
    assert labelled([b for part in parts for b in part]) == labelled([whole])
    assert sum(b.tokens for part in parts for b in part) == whole.tokens == counts(update)[0]
    assert sum(b.trained for part in parts for b in part) == whole.trained == counts(update)[1]


def test_another_epoch_and_another_seed_give_another_order() -> None:
    samples = numbered([3] * 50)
    orders = {
        str(shape(updates(samples, seed=s, epoch=e, batch=4, pack_to=p)))
        for s, e, p in [(1, 0, None), (1, 1, None), (2, 0, None), (1, 0, 9), (1, 1, 9), (2, 0, 9)]
    }
    assert len(orders) == 6
