"""The seed of the edge table's hash: it changes no result, and who does not know it cannot attack.

The hash is written once more here, as an attacker would, to choose tokens whose edges collide.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import texts
from calls import assert_draft_equals, copy_slots, extend, lookup, reference_of, reset
from inspection import assert_slot_equals, with_arrays

import jax_sa

CAPACITY, COLLIDING = 512, 300
SEEDS = [1, -1, 2**31 - 1, -(2**31), 123_456_789]


def mix(x):
    with np.errstate(over="ignore"):
        x = np.asarray(x, np.uint32)
        x = (x ^ x >> 15) * np.uint32(0xC2B2AE3D)
        return (x ^ x >> 13) * np.uint32(0x27D4EB2F)


def home_entries(seed, ends, tokens, num_entries):
    """Where the search for each edge (first end, token) starts."""
    with np.errstate(over="ignore"):
        mixed = mix(np.int64(seed) & 0xFFFFFFFF)
        by_end = np.asarray(ends).astype(np.uint32) * (np.uint32(0x9E3779B1) ^ mixed << 1)
        by_token = np.asarray(tokens).astype(np.uint32) * (np.uint32(0x85EBCA77) ^ mix(mixed) << 1)
        return (mix(by_end ^ by_token).astype(np.uint64) * num_entries >> 32).astype(np.int64)


def displacements(state, slot):
    """For each explicit edge, the entries that a search for it passes."""
    edges = np.asarray(state.edges[slot])
    taken = np.flatnonzero(edges[:, 0])
    homes = home_entries(
        int(state.seed[slot]), edges[taken, 0] - 1, edges[taken, 1], np.uint64(len(edges))
    )
    return (taken - homes) % len(edges)


def colliding_tokens(seed):
    """Distinct tokens: each makes one edge, from the root, and all are searched from one entry."""
    num_entries = np.uint64(jax_sa.init(1, CAPACITY).edges.shape[1])
    tokens = np.arange(2**20)
    homes = home_entries(seed, np.zeros_like(tokens), tokens, num_entries)
    return tokens[homes == 7][:COLLIDING].tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_tokens_that_collide_under_one_seed_do_not_under_another(seed):
    text = colliding_tokens(seed=0)
    assert len(text) == COLLIDING
    known = extend(jax_sa.init(1, CAPACITY), [text])
    assert displacements(known, 0).max() == COLLIDING - 2  # the first token's edge is implied
    other = extend(jax_sa.init(1, CAPACITY, seed=seed), [text])
    assert displacements(other, 0).max() < 10
    for state in (known, other):
        assert_slot_equals(state, 0, reference_of(text, CAPACITY))
    # Who knows the seed can attack it as well.
    text = colliding_tokens(seed)
    known = extend(jax_sa.init(1, CAPACITY, seed=seed), [text])
    assert displacements(known, 0).max() == COLLIDING - 2


def test_pairs_of_ends_and_tokens_that_collide_under_one_seed_do_not_under_another():
    """Equal products, so that the whole hash is the same, whatever the mixing after it."""
    with np.errstate(over="ignore"):
        ends = np.arange(1, 5000, dtype=np.uint32)
        inverse = np.uint32(pow(0x85EBCA77, -1, 2**32))
        tokens = (ends * np.uint32(0x9E3779B1) ^ np.uint32(99)) * inverse
    entries = np.uint64(2**20)
    assert len(set(home_entries(0, ends, tokens, entries).tolist())) == 1
    for seed in SEEDS:
        assert len(set(home_entries(seed, ends, tokens, entries).tolist())) > 4900


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["source-code", "random-2", "most-edges", "run-break-run"])
def test_the_seed_changes_no_result(name, seed):
    text = texts.SMALL[name]
    state = extend(jax_sa.init(1, len(text), seed=seed), [text[:50]])
    state = extend(state, [text[50:]])
    assert_slot_equals(state, 0, reference_of(text))
    assert_draft_equals(lookup(state, max_draft=5), 0, reference_of(text), 5)


def test_a_slot_keeps_its_seed():
    state = jax.tree.map(
        jnp.asarray, with_arrays(jax_sa.init(3, 16), seed=np.array([5, 6, 7], np.int32))
    )
    state = reset(extend(state, [[1, 2, 1]] * 3), [0, 2])
    assert state.seed.tolist() == [5, 6, 7]
    for leaf in jax.tree.leaves(with_arrays(state, seed=np.zeros(3, np.int32))):
        assert not leaf[0].any() and not leaf[2].any()
    state = copy_slots(state, [1], [2])
    assert state.seed.tolist() == [5, 6, 6]
    state = extend(state, [[3], [1], [2]])
    for slot, text in enumerate([[3], [1, 2, 1, 1], [1, 2, 1, 2]]):
        assert_slot_equals(state, slot, reference_of(text, 16))


@pytest.mark.parametrize(
    ("seed", "error"), [(2**31, ValueError), (-(2**31) - 1, ValueError), (1.0, TypeError)]
)
def test_the_seed_is_an_int32(seed, error):
    with pytest.raises(error, match=rf"seed: expected an int in .*got {seed}"):
        jax_sa.init(1, 8, seed=seed)
