"""Drafts as trees of two arrays, and drafts made by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_sa
from jax_sa import Source

TOKENS = jnp.arange(12, dtype=jnp.int32).reshape(3, 4)
COLUMNS = {
    "length": jnp.array([4, 2, 0], jnp.int32),
    "match_length": jnp.array([7, 0, 0], jnp.int32),
    "match_end": jnp.array([9, 0, 0], jnp.int32),
    "source": jnp.array([Source.POOL, Source.NEURAL, Source.NONE], jnp.int32),
}


def columns_of(draft):
    return {name: getattr(draft, name).tolist() for name in COLUMNS}


def lists(**changes):
    return {name: column.tolist() for name, column in {**COLUMNS, **changes}.items()}


@pytest.mark.parametrize("index", ["automaton", "scan"])
def test_a_draft_is_two_arrays(index):
    state = jax_sa.init(2, 8, index=index)
    draft = jax_sa.lookup(state, max_draft=3)
    assert [leaf.shape for leaf in jax.tree.leaves(draft)] == [(2, 3), (2, 4)]
    assert all(getattr(draft, name).dtype == jnp.int32 for name in COLUMNS)


def test_columns_come_back():
    draft = jax_sa.Draft(TOKENS, *COLUMNS.values())
    assert columns_of(draft) == lists()
    assert columns_of(jax.device_get(draft)) == lists()
    assert columns_of(jax.jit(lambda draft: draft)(draft)) == lists()
    assert columns_of(jax_sa.Draft(TOKENS, numbers=draft.numbers)) == lists()


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_is_replaced(name):
    draft = jax_sa.Draft(TOKENS, **COLUMNS)
    column = jnp.array([1, 3, 2], jnp.int32)
    changed = jax.jit(lambda draft, new: dataclasses.replace(draft, **{name: new}))(draft, column)
    assert columns_of(changed) == lists(**{name: column})
    assert changed.tokens.tolist() == TOKENS.tolist()


def test_what_is_left_out():
    """Without a match, the tokens are a neural drafter's."""
    draft = jax_sa.Draft(TOKENS, COLUMNS["length"])
    none = jnp.zeros(3, jnp.int32)
    neural = jnp.array([Source.NEURAL, Source.NEURAL, Source.NONE], jnp.int32)
    assert columns_of(draft) == lists(match_length=none, match_end=none, source=neural)
    matches = jax_sa.Draft(TOKENS, COLUMNS["length"], COLUMNS["match_length"])
    assert matches.source.tolist() == [Source.OWN, Source.NEURAL, Source.NONE]


def test_drafts_of_a_vmapped_axis():
    draft = jax_sa.Draft(TOKENS, **COLUMNS)
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 1]), draft)
    assert both.match_end.tolist() == [[9, 0, 0], [10, 1, 1]]
    lengths = jnp.ones((2, 3), jnp.int32)
    assert dataclasses.replace(both, length=lengths).length.tolist() == lengths.tolist()
    cut = jax.vmap(jax_sa.share_budget, in_axes=(0, None))(both, jnp.int32(2))
    for i in range(2):
        alone = jax_sa.share_budget(jax.tree.map(lambda leaf, i=i: leaf[i], both), 2)
        assert 0 < alone.length.sum() <= 2
        assert cut.length[i].tolist() == alone.length.tolist()


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"match_length": COLUMNS["length"]}, TypeError, "length: expected int32[B], got None"),
        ({"length": np.zeros(3)}, TypeError, "length: expected int32[3,], got float64[3]"),
        (
            {"length": COLUMNS["length"], "source": np.int32(1)},
            ValueError,
            "source: expected int32[3,], got int32[]",
        ),
    ],
)
def test_wrong_columns(columns, error, message):
    with pytest.raises(error) as raised:
        jax_sa.Draft(TOKENS, **columns)
    assert str(raised.value).startswith(message)
