"""A flat block holds the tokens of each row, then its draft, and nothing else."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jax_sa

C, K, T = 4, 3, 16


def make(counts, lengths):
    rows = len(counts)
    tokens = jnp.asarray(100 + np.arange(rows * C).reshape(rows, C), jnp.int32)
    drafted = jnp.asarray(500 + np.arange(rows * K).reshape(rows, K), jnp.int32)
    none = jnp.zeros(rows, jnp.int32)
    return tokens, jax_sa.Draft(drafted, jnp.asarray(lengths, jnp.int32), none, none, none)


def expected(tokens, counts, draft, positions):
    """Place by place."""
    places, offsets, first = [], [], []
    for row, count in enumerate(counts):
        own = np.asarray(tokens[row, :count]).tolist()
        drafted = np.asarray(draft.tokens[row, : int(draft.length[row])]).tolist()
        offsets.append(len(places))
        first.append(len(places) + max(count - 1, 0))
        for j, token in enumerate(own + drafted if count else []):
            places.append((token, row, positions[row] + j))
    return places, [*offsets, len(places)], first


rows_of = st.lists(
    st.tuples(st.integers(0, C), st.integers(0, K), st.integers(0, 50)), min_size=1, max_size=5
)


@settings(max_examples=60, deadline=None)
@given(rows_of)
def test_equals_the_obvious(rows):
    counts, lengths, positions = (list(column) for column in zip(*rows, strict=True))
    tokens, draft = make(counts, lengths)
    packed = jax_sa.pack(
        tokens, jnp.asarray(counts, jnp.int32), draft, jnp.asarray(positions, jnp.int32), total=T
    )
    places, offsets, first = expected(tokens, counts, draft, positions)
    padded = (places + [(jax_sa.DRAFT_FILL, len(counts), 0)] * T)[:T]
    got = zip(packed.tokens.tolist(), packed.rows.tolist(), packed.positions.tolist(), strict=True)
    assert list(got) == padded
    assert packed.offsets.tolist() == offsets
    assert packed.first.tolist() == first


def test_what_finds_no_place_is_told():
    tokens, draft = make([1, 4], [3, 0])
    none = jnp.zeros(2, jnp.int32)
    packed = jax_sa.pack(tokens, jnp.asarray([1, 4], jnp.int32), draft, none, total=6)
    assert packed.tokens.tolist() == [100, 500, 501, 502, 104, 105]
    assert int(packed.offsets[-1]) == 8


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"tokens": [[1]]}, TypeError, "tokens: expected int32"),
        ({"counts": jnp.ones(3, jnp.int32)}, ValueError, r"counts: expected int32\[2,\]"),
        ({"positions": jnp.ones(2)}, TypeError, r"positions: expected int32\[2\]|positions"),
        ({"draft": None}, TypeError, "draft.length: expected int32"),
        ({"total": 0}, ValueError, "total: expected an int"),
    ],
)
def test_errors(changed, error, message):
    tokens, draft = make([1, 1], [0, 0])
    ones = jnp.ones(2, jnp.int32)
    arguments = {"tokens": tokens, "counts": ones, "draft": draft, "positions": ones, "total": T}
    with pytest.raises(error, match=message):
        jax_sa.pack(**(arguments | changed))
