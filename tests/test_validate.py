"""validate: what it calls valid can be used, whatever it was given."""

import dataclasses
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import texts
from calls import copy_slots, extend, reference_of, reset
from edge_table import edge_keys, entries_passed, searched_entries
from inspection import assert_slot_equals

import jax_sa
from jax_sa import Invalid

FUZZ = pathlib.Path(__file__).parent / "support" / "fuzz_validate.py"
CAPACITY = 40


def writable(state):
    return jax.tree.map(np.array, state)


def validate(state):
    return jax_sa.validate(jax.tree.map(jnp.asarray, state)).tolist()


@pytest.mark.parametrize("name", texts.SMALL)
@pytest.mark.parametrize("seed", [0, 77])
def test_what_the_ops_leave_is_valid(name, seed):
    text = texts.SMALL[name]
    state = jax_sa.init(3, len(text), seed=seed)
    assert validate(state) == [0, 0, 0]
    state = extend(state, [text[:-1], text[:33], []])
    state = extend(state, [text[-1:], [], text[:1]])
    state = copy_slots(state, [1], [2])
    assert validate(state) == [0, 0, 0]
    state = extend(reset(state, [1]), [[1], [5, 5, 5], []])
    assert state.status.tolist() == [jax_sa.Status.FULL, 0, 0]
    assert validate(state) == [0, 0, 0]


@pytest.mark.parametrize("capacity", [1, 2, 3, 4, 33, 100])
@pytest.mark.parametrize("make", [texts.most_states, texts.most_edges, texts.fibonacci_word])
def test_full_slots_are_valid(make, capacity):
    text = make(max(capacity, 3))[:capacity]
    assert validate(extend(jax_sa.init(1, capacity), [text])) == [0]


def test_large_slots_are_valid():
    text = texts.random_text(2, 50_000)
    assert validate(extend(jax_sa.init(1, 50_000), [text])) == [0]


@pytest.fixture
def valid():
    """A slot with clones and edges beside one that stays as it is."""
    text = [*texts.random_text(2, 30), 7]
    return writable(extend(jax_sa.init(2, CAPACITY), [text, text]))


def first_edge(state):
    return int(np.flatnonzero(state.edges[0, :, 0])[0])


def free_entry(state):
    return int(np.flatnonzero(state.edges[0, :, 0] == 0)[-1])


def free_entry_after(state, entry):
    """The one in which the edge of an entry would be if others had taken all before it."""
    end, token, _, length = state.edges[0, entry]
    key = edge_keys(int(state.seed[0]), end - 1, token)
    searched = searched_entries(key, int(length), state.edges.shape[1])
    return next(other for other in searched if not state.edges[0, other, 0])


def set_item(field, index, value):
    def change(state):
        getattr(state, field)[(0, *index)] = value

    return change


def last_edge(state):
    """One that the search for no other passes."""
    edges, seed = state.edges[0], int(state.seed[0])
    taken = np.flatnonzero(edges[:, 0])
    passed = {other for entry in taken for other in entries_passed(edges, seed, entry)}
    return next(entry for entry in taken if entry not in passed)


def without_an_edge(state):
    state.edges[0, last_edge(state)] = 0


def with_another_edge(state):
    state.edges[0, free_entry(state)] = (6, 99, 2 * 3, 5)


def with_a_needless_edge(state):
    """A shorter node's own edge, to where that of the longer one leads anyway."""
    first = first_edge(state)
    end, token, target, length = state.edges[0, first]
    state.edges[0, free_entry_after(state, first)] = (end, token, target & ~1, length - 1)


def with_an_edge_twice(state):
    """The second where a search that passed the first would find it."""
    first = first_edge(state)
    state.edges[0, free_entry_after(state, first)] = state.edges[0, first]


def with_an_edge_elsewhere(state):
    """Where no search comes by: after a free entry."""
    last, entry = last_edge(state), free_entry(state)
    state.edges[0, entry] = state.edges[0, last]
    state.edges[0, last] = 0


def with_a_full_table(state):
    free = state.edges[0, :, 0] == 0
    state.edges[0, free] = (1, 12345, 2, 0)


CORRUPTIONS = {
    "length-negative": (set_item("length", (), -1), Invalid.LENGTH),
    "length-beyond": (set_item("length", (), CAPACITY + 1), Invalid.LENGTH),
    "length-huge": (set_item("length", (), 2**31 - 1), Invalid.LENGTH),
    "clones-counted-wrong": (set_item("num_clones", (), 0), Invalid.NODES),
    "clones-too-many": (set_item("num_clones", (), 2**31 - 1), Invalid.NODES),
    "link-to-itself": (set_item("nodes", (9, 0), 9), Invalid.NODES),
    "link-outside": (set_item("nodes", (9, 0), -5), Invalid.NODES),
    "recent-end-beyond": (set_item("nodes", (3, 1), 1000), Invalid.NODES),
    "unused-node": (set_item("nodes", (CAPACITY - 1, 1), 4), Invalid.NODES),
    "clone-length": (set_item("clones", (0, 0), 30), Invalid.NODES),
    "clone-end": (set_item("clones", (0, 1), 1000), Invalid.NODES),
    "window": (set_item("suffixes", (0, 0), 3), Invalid.SUFFIXES),
    "window-length": (set_item("suffixes", (31, 1), 1), Invalid.SUFFIXES),
    "window-end": (set_item("suffixes", (0, 2), 1), Invalid.SUFFIXES),
    "target": (
        lambda state: set_item("edges", (first_edge(state), 2), 2 * 10**6)(state),
        Invalid.EDGES,
    ),
    "target-like-a-mark": (
        lambda state: set_item("edges", (first_edge(state), 2), -1)(state),
        Invalid.EDGES,
    ),
    "source": (
        lambda state: set_item("edges", (first_edge(state), 0), -3)(state),
        Invalid.EDGES,
    ),
    "longest-source": (
        lambda state: set_item("edges", (first_edge(state), 3), -1)(state),
        Invalid.EDGES,
    ),
    "edge-missing": (without_an_edge, Invalid.EDGES),
    "edge-too-many": (with_another_edge, Invalid.EDGES),
    "edge-needless": (with_a_needless_edge, Invalid.EDGES),
    "edge-twice": (with_an_edge_twice, Invalid.EDGES),
    "edge-elsewhere": (with_an_edge_elsewhere, Invalid.EDGES),
    "full-table": (with_a_full_table, Invalid.EDGES),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_bit(valid, name):
    corrupt, bits = CORRUPTIONS[name]
    assert validate(valid) == [0, 0]
    corrupt(valid)
    assert validate(valid) == [bits, 0]
    state = reset(jax.tree.map(jnp.asarray, valid), [0])
    assert validate(state) == [0, 0]


def test_a_duplicate_that_looks_like_a_mark(valid):
    """validate marks an edge that it has seen by a target that no edge has: this one has it."""
    entry = free_entry_after(valid, first_edge(valid))
    with_an_edge_twice(valid)
    valid.edges[0, entry, 2] = -1
    assert validate(valid) == [Invalid.EDGES, 0]


def test_a_text_cut_by_hand_is_not_valid(valid):
    """There is no rollback by lowering the length: what the last tokens added stays."""
    valid.length[0] -= 1
    assert validate(valid)[0] != 0


def test_a_changed_token_is_not_valid(valid):
    valid.tokens[0, 5] = 1 - valid.tokens[0, 5]
    assert validate(valid)[0] != 0


def test_another_seed_is_not_valid(valid):
    valid.seed[0] = 1
    assert validate(valid) == [Invalid.EDGES, 0]


def test_what_is_not_read_may_be_anything(valid):
    valid.tokens[0, valid.length[0] :] = -99
    valid.edges[0, free_entry(valid), 1:] = -99
    valid.status[0] = jax_sa.Status.CONFLICT
    assert validate(valid) == [0, 0]
    state = extend(jax.tree.map(jnp.asarray, valid), [[1, 1, 0], []])
    text = [*texts.random_text(2, 30), 7, 1, 1, 0]
    assert_slot_equals(state, 0, reference_of(text, CAPACITY), status=jax_sa.Status.CONFLICT)


def test_arrays_that_do_not_belong_together(valid):
    with pytest.raises(ValueError, match=r"state\.index: expected int32"):
        jax_sa.validate(dataclasses.replace(valid, index=valid.index[:, 4:]))


@pytest.mark.parametrize("seed", range(4))
def test_corrupted_states(seed):
    """Slots changed at random, 2,500 at a time, in a process of its own that may crash or hang."""
    result = subprocess.run(
        [sys.executable, FUZZ, "--seed", str(seed), "--slots", "2500"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, (result.returncode, result.stderr[-2000:])
