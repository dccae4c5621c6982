"""Rows and slots: subsets, skips, repeats, resets and copies."""

import functools

import jax
import numpy as np
import pytest
import texts
from calls import (
    assert_draft_equals,
    assert_drafts_nothing,
    assert_states_equal,
    copy_slots,
    extend,
    extend_lookup,
    lookup,
    reference_of,
    reset,
)
from inspection import assert_slot_equals

import jax_sa
from jax_sa import Status

INT32 = np.iinfo(np.int32)


def snapshot(state):
    return jax.tree.map(np.array, state)


def filled_state(num_slots=4, capacity=64):
    """Slot s holds 20 + s tokens of its own random text."""
    rows = [texts.random_text(3, 20 + s, seed=s) for s in range(num_slots)]
    return extend(jax_sa.init(num_slots, capacity), rows), rows


def test_slots_are_independent():
    rows = [texts.SMALL[name][:n] for name, n in zip(texts.SMALL, range(200, 0, -13), strict=False)]
    state = extend(jax_sa.init(len(rows), 256), rows)
    draft = lookup(state, max_draft=7)
    for slot, row in enumerate(rows):
        assert_slot_equals(state, slot, reference_of(row, 256))
        assert_draft_equals(draft, slot, reference_of(row, 256), 7)


def test_subsets_of_slots_in_any_order():
    capacity, num_slots = 300, 7
    state = jax_sa.init(num_slots, capacity)
    expected = [reference_of([], capacity) for _ in range(num_slots)]
    random = np.random.default_rng(0)
    for call in range(60):
        rows = int(random.integers(1, num_slots + 1))
        slots = random.permutation(num_slots)[:rows]
        blocks = [random.integers(0, 4, random.integers(0, 6)).tolist() for _ in slots]
        if call % 2:
            state, draft = extend_lookup(state, blocks, slots, max_draft=4)
        else:
            state = extend(state, blocks, slots)
            draft = lookup(state, slots, max_draft=4)
        for row, (slot, block) in enumerate(zip(slots, blocks, strict=True)):
            for token in block:
                expected[slot].append(token)
            assert_draft_equals(draft, row, expected[slot], 4)
    for slot in range(num_slots):
        assert_slot_equals(state, slot, expected[slot])


@pytest.mark.parametrize("slot", [-1, -2, 4, 5, INT32.min, INT32.max])
def test_a_row_without_a_slot_changes_nothing(slot):
    state, rows = filled_state()
    before = snapshot(state)
    state, draft = extend_lookup(state, [[1, 2]], [slot], max_draft=3)
    assert_drafts_nothing(draft, 0)
    assert_drafts_nothing(lookup(state, [slot], max_draft=3), 0)
    state = extend(state, [[1, 2]], [slot])
    assert_states_equal(snapshot(state), before)
    state, draft = extend_lookup(state, [[1, 2], [5]], [slot, 2], max_draft=3)
    assert_drafts_nothing(draft, 0)
    assert_draft_equals(draft, 1, reference_of([*rows[2], 5], 64), 3)


@pytest.mark.parametrize("length", [-1, 3, INT32.min, INT32.max])
def test_a_row_with_a_length_out_of_range_changes_nothing(length):
    state, rows = filled_state()
    blocks = [[1, 2], [0, 1], [1, 1], [2, 2]]
    state = extend(state, blocks, lengths=[2, length, 0, 1])
    status = [0, Status.OUT_OF_RANGE, 0, 0]
    texts_ = [[*rows[0], 1, 2], rows[1], rows[2], [*rows[3], 2]]
    for slot, text in enumerate(texts_):
        assert_slot_equals(state, slot, reference_of(text, 64), status=status[slot])
    state, draft = extend_lookup(state, blocks, lengths=[0, 0, length, 0], max_draft=3)
    status[2] = Status.OUT_OF_RANGE
    for slot, text in enumerate(texts_):
        assert_slot_equals(state, slot, reference_of(text, 64), status=status[slot])
    # A text that lost tokens drafts nothing, until it is reset.
    for drafted in (draft, lookup(state, max_draft=3)):
        assert_draft_equals(drafted, 0, reference_of(texts_[0], 64), 3)
        assert_drafts_nothing(drafted, 1)
        assert_drafts_nothing(drafted, 2)
    state, draft = extend_lookup(reset(state, [1]), blocks, lengths=[0, 2, 0, 0], max_draft=3)
    assert_slot_equals(state, 1, reference_of(blocks[1], 64))


@pytest.mark.parametrize("call", [extend, functools.partial(extend_lookup, max_draft=3)])
def test_a_row_after_a_bad_first_one_conflicts(call):
    state, rows = filled_state()
    state = call(state, [[1, 2], [1, 2], [0, 1]], [2, 2, 1], lengths=[5, 2, 2])
    state = state[0] if isinstance(state, tuple) else state
    status = Status.CONFLICT | Status.OUT_OF_RANGE
    assert_slot_equals(state, 2, reference_of(rows[2], 64), status=status)
    assert_slot_equals(state, 1, reference_of([*rows[1], 0, 1], 64))


@pytest.mark.parametrize("limit", [INT32.min, -1, 0, 1, 3, 5, 6, INT32.max])
@pytest.mark.parametrize("options", [{}, {"periodic": False}, {"draft_factor": 0.6}])
def test_limits_cut_drafts_and_leave_matches_alone(limit, options):
    text = texts.random_text(2, 40)
    state = extend(jax_sa.init(3, 64), [text, text, text[:30]])
    cut = min(max(limit, 0), 5)
    whole = lookup(state, max_draft=5, **options)
    limited = lookup(state, limits=[INT32.max, limit, limit], max_draft=5, **options)
    state, fused = extend_lookup(
        state, [[]] * 3, limits=[INT32.max, limit, limit], max_draft=5, **options
    )
    for draft in (limited, fused):
        np.testing.assert_array_equal(draft.match_length, whole.match_length)
        np.testing.assert_array_equal(draft.match_end, whole.match_end)
        lengths = np.minimum(whole.length, [5, cut, cut])
        np.testing.assert_array_equal(draft.length, lengths)
        for row, length in enumerate(lengths.tolist()):
            expected = np.where(np.arange(5) < length, whole.tokens[row], jax_sa.DRAFT_FILL)
            np.testing.assert_array_equal(draft.tokens[row], expected)
    one = lookup(state, [1], limits=[limit], max_draft=5, **options)
    assert int(one.length[0]) == min(int(whole.length[1]), cut)


def test_length_zero_leaves_a_slot_alone_and_looks_it_up():
    state, rows = filled_state()
    before = snapshot(state)
    state, draft = extend_lookup(state, [[9]] * 4, lengths=[0] * 4, max_draft=3)
    assert_states_equal(snapshot(state), before)
    for slot, row in enumerate(rows):
        assert_draft_equals(draft, slot, reference_of(row, 64), 3)


@pytest.mark.parametrize("rows", [3, 40])
def test_the_first_row_that_names_a_slot_has_it(rows):
    state, texts_ = filled_state()
    slots = [2] * (rows - 1) + [1]
    blocks = [[i % 3] for i in range(rows)]
    state, draft = extend_lookup(state, blocks, slots, max_draft=3)
    winner = reference_of([*texts_[2], 0], 64)
    assert_slot_equals(state, 2, winner, status=Status.CONFLICT)
    assert_draft_equals(draft, 0, winner, 3)
    for row in range(1, rows - 1):
        assert_drafts_nothing(draft, row)
    assert_slot_equals(state, 1, reference_of([*texts_[1], (rows - 1) % 3], 64))
    # Reading is free of conflicts, and the status stays until a reset.
    draft = lookup(state, [2, 2], max_draft=3)
    assert_draft_equals(draft, 1, winner, 3)
    assert int(reset(state, [2]).status[2]) == 0


def test_no_rows():
    state, _ = filled_state()
    before = snapshot(state)
    state = extend(state, np.zeros((0, 3), np.int32).tolist(), [])
    state = copy_slots(reset(state, []), [], [])
    assert lookup(state, [], max_draft=3).tokens.shape == (0, 3)
    assert_states_equal(snapshot(state), before)


def test_rows_without_tokens():
    state, _ = filled_state()
    before = snapshot(state)
    state = extend(state, [[], [], [], []])
    assert_states_equal(snapshot(state), before)


def test_reset_leaves_zeros():
    state, rows = filled_state()
    state = extend(state, [[1] * 60] * 4)  # full, so that the status is set too
    state = reset(state, [3, -1, 0, 4, 3, INT32.min])
    for slot in (0, 3):
        assert all(not np.any(leaf[slot]) for leaf in jax.tree.leaves(snapshot(state)))
    for slot in (1, 2):
        text = (rows[slot] + [1] * 60)[:64]
        assert_slot_equals(state, slot, reference_of(text, 64), status=Status.FULL)
    state = extend(state, [[7, 8, 7]], [3])
    assert_slot_equals(state, 3, reference_of([7, 8, 7], 64))


def test_copies_are_forks():
    state, rows = filled_state()
    state = copy_slots(state, [1, 1, -1, 2, 1], [0, 3, 2, -1, 9])
    state = extend(state, [[5], [6], [], [7]])
    for slot, text in enumerate([[*rows[1], 5], [*rows[1], 6], rows[2], [*rows[1], 7]]):
        assert_slot_equals(state, slot, reference_of(text, 64))


def test_copying_the_status():
    state, rows = filled_state()
    state = extend(state, [[1] * 60], [0])
    state = copy_slots(state, [0], [1])
    text = (rows[0] + [1] * 60)[:64]
    assert_slot_equals(state, 1, reference_of(text, 64), status=Status.FULL)


def test_conflicting_copies():
    state, rows = filled_state(num_slots=6)
    # 0 -> 2 wins over 1 -> 2; 2 -> 4 reads what is being overwritten; 5 -> 5 is no change.
    state = copy_slots(state, [0, 1, 2, 5], [2, 2, 4, 5])
    expected = [0, 1, 0, 3, 4, 5]
    status = [0, 0, Status.CONFLICT, 0, Status.CONFLICT, 0]
    for slot, source in enumerate(expected):
        assert_slot_equals(state, slot, reference_of(rows[source], 64), status=status[slot])


@pytest.mark.parametrize("source", [-2, 6, INT32.min, INT32.max])
def test_copies_of_no_slot(source):
    """The destination keeps its text, and says so; -1 skips the row, as any row without one."""
    state, rows = filled_state(num_slots=6)
    copies = [(source, 0), (source, 1), (2, 1), (-1, 3), (0, 4), (-1, 5), (2, 5), (3, source)]
    state = copy_slots(state, *zip(*copies, strict=True))
    bad, conflict = Status.OUT_OF_RANGE, Status.CONFLICT
    # 0 -> 4 reads what the row before was to overwrite.
    for slot, (text, status) in enumerate(
        [(0, bad), (1, bad | conflict), (2, 0), (3, 0), (4, conflict), (2, 0)]
    ):
        assert_slot_equals(state, slot, reference_of(rows[text], 64), status=status)
    draft = lookup(state, max_draft=3)
    assert_drafts_nothing(draft, 0)
    assert_draft_equals(draft, 3, reference_of(rows[3], 64), 3)


def test_swapping_is_refused():
    state, rows = filled_state()
    state = copy_slots(state, [0, 1], [1, 0])
    for slot in (0, 1):
        assert_slot_equals(state, slot, reference_of(rows[slot], 64), status=Status.CONFLICT)


@pytest.mark.parametrize("capacity", [1, 5, 7, 1000, 8192])
def test_copy_and_reset_at_any_alignment(capacity):
    rows = [texts.random_text(5, capacity, seed=s) for s in range(3)]
    state = extend(jax_sa.init(3, capacity), rows)
    before = snapshot(state)
    state = snapshot(reset(copy_slots(state, [0], [2]), [0]))
    for got, leaf in zip(jax.tree.leaves(state), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(got, np.stack([np.zeros_like(leaf[0]), leaf[1], leaf[0]]))
