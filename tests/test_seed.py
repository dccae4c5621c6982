"""The seed of the edge table's hash: it changes no result, and who does not know it cannot attack.

`edge_table.py` has the hash once more, to choose tokens whose edges collide as an attacker would.
"""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import texts
from calls import assert_draft_equals, copy_slots, extend, lookup, reference_of, reset
from edge_table import edge_keys, entries_passed
from inspection import assert_slot_equals, with_arrays

import jax_sa

CAPACITY, COLLIDING = 1024, 300
SEEDS = [1, -1, 2**31 - 1, -(2**31), 123_456_789]


def passed(state, slot):
    """For each explicit edge, how many entries a search for it passes."""
    edges = np.asarray(state.edges[slot])
    seed = int(state.seed[slot])
    return [len(entries_passed(edges, seed, entry)) for entry in np.flatnonzero(edges[:, 0])]


def colliding_text(seed):
    """A text with an edge from each of many ends, of length 1, all searched for in the same order.

    Of distinct tokens, then each of them once more, with another one after it that makes the
    products of end and token equal.
    """
    ends = np.arange(1, COLLIDING + 1)
    inverse = pow(int(edge_keys(seed, 0, 1)), -1, 2**32)
    followers = [(int(key) ^ 99) * inverse % 2**32 for key in edge_keys(seed, ends, 0)]
    assert len(set(edge_keys(seed, ends, followers).tolist())) == 1
    followers = np.array(followers, np.uint32).view(np.int32)
    first = np.arange(COLLIDING) + 1000
    return [*first.tolist(), 7, *np.stack([first, followers], 1).ravel().tolist()]


@pytest.mark.parametrize("seed", SEEDS)
def test_edges_that_collide_under_one_seed_do_not_under_another(seed):
    text = colliding_text(seed=0)
    known = extend(jax_sa.init(1, CAPACITY), [text])
    assert max(passed(known, 0)) >= COLLIDING - 1
    other = extend(jax_sa.init(1, CAPACITY, seed=seed), [text])
    assert max(passed(other, 0)) < 40
    for state in (known, other):
        assert_slot_equals(state, 0, reference_of(text, CAPACITY))
    # Who knows the seed can attack it as well.
    text = colliding_text(seed)
    known = extend(jax_sa.init(1, CAPACITY, seed=seed), [text])
    assert max(passed(known, 0)) >= COLLIDING - 1
    assert_slot_equals(known, 0, reference_of(text, CAPACITY))


def test_many_edges_of_one_end_and_token_are_found_in_few_steps():
    """Of ever longer nodes: only those of lengths alike are in each other's way."""
    text = texts.nested_repeats(150)
    state = extend(jax_sa.init(1, len(text)), [text])
    edges = np.asarray(state.edges[0])
    ends_and_tokens = edges[edges[:, 0] > 0, :2].tolist()
    most = collections.Counter(map(tuple, ends_and_tokens)).most_common(1)[0][1]
    assert most > 140 and max(passed(state, 0)) < 110
    assert not jax_sa.validate(state).any()


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
