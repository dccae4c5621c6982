"""The GPU's algorithm without a GPU.

CPU and GPU run one source, `ffi/automaton.h`, on lanes that the CPU runs one after the other and
the GPU side by side. Here they run in random orders, compiled beside the library: the automaton
must be the same, up to the places of edges in their table.
"""

import ctypes
import dataclasses

import cpp_library
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import texts
from calls import reference_of
from inspection import assert_slot_equals
from reference import draft
from test_followers import random_followers

import jax_sa

MAX_DRAFT = 6


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return cpp_library.build("shuffled_lanes", tmp_path_factory.mktemp("lanes"))


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", texts.SMALL)
def test_any_order_of_lanes(library, name, seed):
    text = texts.SMALL[name]
    capacity = len(text)
    state = jax.tree.map(np.array, jax_sa.init(1, capacity))
    leaves = [pointer(leaf) for leaf in jax.tree.leaves(state)]
    pool = jax.tree.map(np.array, jax_sa.init_pool(4))
    entries = [pointer(leaf) for leaf in jax.tree.leaves(pool)]
    width = 1 + 6 * seed
    for call, begin in enumerate(range(0, capacity, width)):
        block = np.array(text[begin : begin + width], np.int32)
        drafted = np.full(MAX_DRAFT + 4, -9, np.int32)
        library.extend_lookup(
            (ctypes.c_void_p * len(leaves))(*leaves),
            *(capacity, state.index.shape[1]),
            *((ctypes.c_void_p * 4)(*entries), 4),
            *(pointer(block), pointer(np.array([len(block)], np.int32)), len(block)),
            *(pointer(drafted), MAX_DRAFT, 1000 * seed + call),
        )
        if call % 9 == 0 or begin + width >= capacity:
            automaton = reference_of(text[: begin + width], capacity)
            assert_slot_equals(state, 0, automaton)
            expected = draft(automaton.text, automaton.lookup(), MAX_DRAFT)
            assert drafted[:MAX_DRAFT].tolist() == (expected or [jax_sa.DRAFT_FILL] * MAX_DRAFT)
    # The order of lanes decides the places of edges; validate must not mind.
    assert jax_sa.validate(jax.tree.map(jnp.asarray, state)).tolist() == [0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("capacity", [16, 64, 1024])
def test_any_order_leaves_the_same_pool(library, capacity, seed):
    """Whichever token comes into the ring first, and in whichever order lookups compare."""
    generator = np.random.default_rng(seed)
    pool = jax_sa.init_pool(capacity, num_groups=2)
    pool = dataclasses.replace(pool, head=jnp.full(2, 2**31 - 90, jnp.int32))
    other = jax.tree.map(np.array, pool)
    leaves = (ctypes.c_void_p * 4)(*map(pointer, jax.tree.leaves(other)))
    for call in range(5):
        tokens = generator.integers(0, 3, (40, 30), dtype=np.int32)
        lengths = generator.integers(-1, 12, 40, dtype=np.int32)
        groups = generator.integers(-1, 2, 40, dtype=np.int32)
        pool = jax_sa.insert(pool, *map(jnp.asarray, (tokens, lengths)), groups=jnp.asarray(groups))
        library.pool_insert(
            *(leaves, 2, capacity),
            *map(pointer, (tokens, lengths, groups)),
            *(40, 30, 100 * seed + call),
        )
        jax.tree.map(np.testing.assert_array_equal, other, pool)
    state = jax.tree.map(np.array, jax_sa.init(1, 64))
    slot = (ctypes.c_void_p * 3)(*map(pointer, jax.tree.leaves(state)))
    for n, token in enumerate(generator.integers(0, 3, 60, dtype=np.int32)):
        drafted = np.full(MAX_DRAFT + 4, -9, np.int32)
        library.extend_lookup(
            *(slot, 64, state.index.shape[1]),
            *(leaves, capacity),
            *(pointer(token[None].copy()), pointer(np.ones(1, np.int32)), 1),
            *(pointer(drafted), MAX_DRAFT, 1000 * seed + n),
        )
        expected = jax_sa.lookup(
            jax.tree.map(jnp.asarray, state), pool=pool, max_draft=MAX_DRAFT, draft_factor=1e9
        )
        assert drafted.tolist() == [
            *expected.tokens[0].tolist(),
            *(
                int(x[0])
                for x in (
                    expected.length,
                    expected.match_length,
                    expected.match_end,
                    expected.source,
                )
            ),
        ]


@pytest.mark.parametrize("seed", range(3))
def test_any_order_follows_alike(library, seed):
    generator = np.random.default_rng(seed)
    pool = jax_sa.init_pool(4)
    rings = (ctypes.c_void_p * 4)(*map(pointer, jax.tree.leaves(jax.tree.map(np.array, pool))))
    text = generator.integers(0, 2 + seed, 200, dtype=np.int32)
    state = jax_sa.extend(jax_sa.init(1, 200), jnp.asarray(text[None]), jnp.full(1, 200, jnp.int32))
    slot = jax.tree.map(np.array, state)
    leaves = (ctypes.c_void_p * 3)(*map(pointer, jax.tree.leaves(slot)))
    for n in range(40):
        added = generator.integers(0, 2 + seed, n, dtype=np.int32)
        drafted = np.full(MAX_DRAFT + 4, -9, np.int32)
        library.lookup_after(
            *(leaves, 200, slot.index.shape[1], rings, 4),
            *(pointer(added), pointer(np.array([n], np.int32)), n),
            *(pointer(drafted), MAX_DRAFT, seed + n),
        )
        expected = jax_sa.lookup_after(
            state, jnp.asarray(added[None]), jnp.full(1, n, jnp.int32), max_draft=MAX_DRAFT
        )
        fields = [np.asarray(field[0]).ravel() for field in jax.tree.leaves(expected)]
        np.testing.assert_array_equal(drafted, np.concatenate(fields))


@pytest.mark.parametrize("vocabulary", [0, 3, 12])
@pytest.mark.parametrize("seed", range(3))
def test_any_order_gives_the_same_tree(library, seed, vocabulary):
    """Without followers, with those of some of the text's tokens, and with those of all."""
    generator = np.random.default_rng(seed)
    text, other = generator.integers(0, 4, (2, 200), dtype=np.int32)
    pool = jax_sa.insert(
        jax_sa.init_pool(256), jnp.asarray(other[None]), jnp.full(1, 200, jnp.int32)
    )
    ring = jax.tree.map(np.array, pool)
    rings = (ctypes.c_void_p * 4)(*map(pointer, jax.tree.leaves(ring)))
    table = random_followers(generator, vocabulary, 1).astype(np.int32)
    followers = jax_sa.Followers(jnp.asarray(table)) if vocabulary else None
    state, sources = jax_sa.init(1, 200), set()
    for n in range(0, 200, 5):
        block = jnp.asarray(text[None, n : n + 5])
        state = jax_sa.extend(state, block, jnp.full(1, 5, jnp.int32))
        slot = jax.tree.map(np.array, state)
        leaves = (ctypes.c_void_p * 3)(*map(pointer, jax.tree.leaves(slot)))
        nodes = 1 + 13 * (n % 4)
        tree = np.full(5 * nodes + 1, -9, np.int32)
        library.lookup_tree(
            *(leaves, 200, slot.index.shape[1], rings, 256),
            *(pointer(table), vocabulary, pointer(tree), nodes, seed + n),
        )
        expected = jax_sa.lookup_tree(state, max_nodes=nodes, pool=pool, followers=followers)
        fields = [np.asarray(field[0]).ravel() for field in jax.tree.leaves(expected)]
        np.testing.assert_array_equal(tree, np.concatenate(fields))
        sources |= set(expected.source[0].tolist())
    assert (jax_sa.Source.FOLLOWER in sources) == (vocabulary > 0)
