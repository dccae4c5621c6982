"""Texts that are built on the host and inserted into a slot."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import texts
from calls import assert_draft_equals, assert_states_equal, extend, int32, lookup, reference_of
from inspection import assert_slot_equals

import jax_sa
from jax_sa import Status
from jax_sa.host_build import PROMPT_CHUNK

_insert = jax.jit(jax_sa.insert, donate_argnums=0)


@pytest.mark.parametrize("length", [0, 1, PROMPT_CHUNK - 1, PROMPT_CHUNK, PROMPT_CHUNK + 1, 2500])
@pytest.mark.parametrize("as_tokens", [list, np.asarray, lambda x: np.asarray(x, np.uint8)])
def test_a_text_is_built(length, as_tokens):
    text = texts.random_text(3, length)
    built = jax_sa.build_on_host(as_tokens(text), 2500, seed=-9)
    assert_slot_equals(built, 0, reference_of(text, 2500))
    assert built.seed.tolist() == [-9]
    assert built.tokens.devices().pop().platform == "cpu"


@pytest.mark.parametrize("as_slot", [int, np.int32, int32])
@pytest.mark.parametrize("capacity", [40, 41, 42, 43])
def test_a_built_text_goes_on_in_its_slot(as_slot, capacity):
    rows = [texts.random_text(3, 30, seed=s) for s in range(3)]
    state = extend(jax_sa.init(3, capacity, seed=5), rows)
    text = texts.random_text(2, 35)
    built = jax_sa.build_on_host(text, capacity, seed=6)
    state = jax_sa.insert(state, built, as_slot(1))
    assert state.seed.tolist() == [5, 6, 5]
    state = extend(state, [[1], [0], []])
    expected = [[*rows[0], 1], [*text, 0], rows[2]]
    for slot in range(3):
        assert_slot_equals(state, slot, reference_of(expected[slot], capacity))
    assert_draft_equals(lookup(state, max_draft=4), 1, reference_of(expected[1], capacity), 4)
    assert_slot_equals(built, 0, reference_of(text, capacity))


def test_the_status_comes_along():
    state = extend(jax_sa.init(2, 8), [[1] * 9, [2]])
    state = jax_sa.insert(state, jax_sa.build_on_host([3, 4], 8), 0)
    assert state.status.tolist() == [0, 0]
    full = extend(jax_sa.init(1, 8), [[1] * 9])
    assert jax_sa.insert(state, full, 1).status.tolist() == [0, Status.FULL]


@pytest.mark.parametrize("slot", [-1, 2, 2**31 - 1, -(2**31)])
def test_no_slot_changes_nothing(slot):
    state = extend(jax_sa.init(2, 8), [[1, 2], [3]])
    before = jax.tree.map(np.array, state)
    state = _insert(state, jax_sa.build_on_host([3, 4], 8), int32(slot))
    assert_states_equal(jax.tree.map(np.array, state), before)


def test_in_place_where_donated():
    state = jax_sa.init(3, 512)
    where = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    state = _insert(state, jax_sa.build_on_host([3, 4], 512), jnp.int32(1))
    assert [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)] == where
    assert state.length.tolist() == [0, 2, 0]
