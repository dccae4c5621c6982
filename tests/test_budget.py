"""The chance that drafts hold, and the one budget that a batch shares."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jax_sa
from jax_sa import Source, budget

K = 8


def make_draft(lengths, matches, pool=()):
    """Of rows' own texts, neural where there is no match, or from a pool for the rows named."""
    rows = len(lengths)
    lengths = jnp.asarray(lengths, jnp.int32)
    tokens = jnp.broadcast_to(jnp.arange(1, K + 1, dtype=jnp.int32), (rows, K))
    tokens = jnp.where(jnp.arange(K)[None] < lengths[:, None], tokens, jax_sa.DRAFT_FILL)
    matches = jnp.asarray(matches, jnp.int32)
    source = np.where(matches > 0, jax_sa.Source.OWN, jax_sa.Source.NEURAL)
    source[list(pool)] = jax_sa.Source.POOL
    return jax_sa.Draft(tokens, lengths, matches, matches, jnp.asarray(source, jnp.int32))


def scale(match, length, weight):
    counted = budget.NEURAL_MATCH_LENGTH if match == 0 and length > 0 else match
    return weight * min(max(counted, 1), 64)


def cut(draft, factor, weights):
    """The rule, one row at a time."""
    return [
        min(int(length), round(factor * scale(int(match), int(length), weight)))
        for length, match, weight in zip(draft.length, draft.match_length, weights, strict=True)
    ]


share = jax.jit(jax_sa.share_budget)

rows = st.lists(
    st.tuples(st.integers(0, K), st.integers(0, 90), st.sampled_from([0.25, 0.5, 1.0])),
    min_size=5,
    max_size=5,
)


@settings(max_examples=150, deadline=None)
@given(rows, st.integers(0, 45))
def test_the_largest_common_factor_that_fits(drafts, total):
    lengths, matches, weights = zip(*drafts, strict=True)
    draft = make_draft(lengths, matches)
    cut_draft = share(
        draft, jnp.asarray(total, jnp.int32), weights=jnp.asarray(weights, jnp.float32)
    )
    got = cut_draft.length.tolist()
    assert sum(got) <= max(total, 0)
    # Every length changes at (n - 1/2) / scale: between two such factors nothing changes.
    steps = {0.0, 1e9}
    for length, match, weight in drafts:
        steps |= {(n + 0.5) / scale(match, length, weight) for n in range(length)}
    ordered = sorted(steps)
    between = [(a + b) / 2 for a, b in itertools.pairwise(ordered)]
    cuts = [cut(draft, factor, weights) for factor in between]
    fitting = [lengths for lengths in cuts if sum(lengths) <= total]
    assert sum(got) == max(map(sum, fitting)) and got in fitting


def test_tokens_beyond_the_cut_are_filled():
    draft = jax_sa.share_budget(make_draft([8, 8], [10, 2]), 6)
    assert draft.length.tolist() == [5, 1]
    assert draft.tokens.tolist() == [[1, 2, 3, 4, 5, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]
    assert draft.match_length.tolist() == [10, 2]


def test_a_neural_draft_counts_as_a_match_of_its_own():
    draft = make_draft([8, 8], [0, budget.NEURAL_MATCH_LENGTH])
    assert jax_sa.share_budget(draft, 8).length.tolist() == [4, 4]


def test_a_draft_from_a_pool_counts_half():
    draft = make_draft([8, 8], [4, 8], pool=[1])
    assert jax_sa.share_budget(draft, 8).length.tolist() == [4, 4]


def test_a_budget_from_the_device_compiles_once():
    draft = make_draft([8, 8], [10, 2])
    before = share._cache_size()
    assert [
        int(share(draft, jnp.asarray(total, jnp.int32)).length.sum()) for total in (-3, 0, 4, 99)
    ] == [0, 0, 4, 16]
    assert share._cache_size() == before + 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((make_draft([1], [1]), -1), ValueError, r"budget: expected an int in \[0"),
        ((make_draft([1], [1]), 1.5), TypeError, "budget: expected an int"),
        ((make_draft([1], [1]), jnp.ones(2, jnp.int32)), ValueError, r"budget: expected int32\[\]"),
        (({}, 3), TypeError, "draft.length: expected int32"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        jax_sa.share_budget(*arguments)


def test_weights_are_checked():
    with pytest.raises(ValueError, match=r"weights: expected float32\[1,\]"):
        jax_sa.share_budget(make_draft([1], [1]), 3, weights=jnp.ones(2, jnp.float32))


def test_survival_is_the_product_of_the_chances():
    draft = make_draft([8, 3, 0, 6], [5, 0, 0, 5], pool=[3])
    got = budget.survival(draft, jnp.asarray([1.0, 2.0, 1.0, 1.0], jnp.float32))
    neural, own, pool = budget.NEURAL_MATCH_LENGTH, budget.FAILURE_RATE, budget.POOL_FAILURE_RATE
    rows = {0: (5, own, 8, 1.0), 1: (neural, own, 3, 2.0), 3: (5, pool, 6, 1.0)}
    for row, (match, rate, length, strain) in rows.items():
        expected = 1.0
        for j in range(1, K + 1):
            failure = min(1.0, rate / (match + j))
            expected *= max(0.0, 1.0 - strain * failure) if j <= length else 0.0
            assert math.isclose(got[row, j - 1], expected, rel_tol=1e-5, abs_tol=1e-7)
    assert not got[2].any()


def test_expected_tokens_sum_what_is_verified():
    draft = make_draft([8, 3], [5, 9])
    chances = np.asarray(budget.survival(draft, jnp.ones(2, jnp.float32)))
    lengths = [[0, 0], [2, 3], [8, 8]]
    verified = np.arange(8) < np.asarray(lengths)[..., None]
    got = budget.expected_tokens(jnp.asarray(chances), jnp.asarray(verified))
    for values, of_rows in zip(got, lengths, strict=True):
        for row, length in enumerate(of_rows):
            assert math.isclose(values[row], chances[row, :length].sum(), rel_tol=1e-6)


def test_the_record_tells_rows_whose_drafts_fail():
    record = budget.init_record(jnp.zeros(3))
    draft = make_draft([4, 4, 0], [6, 6, 0])
    for _ in range(30):
        record = budget.update_record(record, draft, jnp.asarray([0, 4, 0], jnp.int32))
    fails, holds, idle = record.strain()
    assert fails > 2 and holds < 0.5 and idle == 1.0


def test_a_record_that_is_as_expected_changes_nothing():
    """Drafts drawn from the rule itself leave the strain near 1."""
    random = np.random.default_rng(0)
    record = budget.init_record(jnp.zeros(200))
    draft = make_draft([8] * 200, [4] * 200)
    chance = 1 - budget.FAILURE_RATE / (4 + np.arange(1, K + 1))
    for _ in range(60):
        holds = random.random((200, K)) < chance
        confirmed = np.cumprod(holds, axis=1).sum(axis=1)
        record = budget.update_record(record, draft, jnp.asarray(confirmed, jnp.int32))
    assert abs(float(record.strain().mean()) - 1) < 0.05


@pytest.mark.parametrize(
    ("tokens", "costs", "width"),
    [
        ([1.0, 1.04, 1.04], [1.0, 1.0, 1.0], 0),  # within the margin
        ([1.0, 1.04, 1.06], [1.0, 1.0, 1.0], 2),
        ([2.0, 3.0, 4.0], [1.0, 1.4, 1.9], 1),
        ([2.0, 3.0, 4.0], [1.0, 0.0, 1.9], 2),
        ([2.0, 3.0, 4.0], [1.0, -1.0, jnp.nan], 0),
        ([2.0, 3.0, 4.0], [jnp.inf, jnp.inf, 9.0], 2),
        ([2.0, 3.0, 4.0], [jnp.inf, jnp.nan, 0.0], 0),
    ],
)
def test_a_width_must_beat_the_narrowest_by_a_margin(tokens, costs, width):
    tokens, costs = (jnp.asarray(x, jnp.float32) for x in (tokens, costs))
    assert int(jax.jit(budget.best_width)(tokens, costs)) == width


@pytest.mark.parametrize(("total", "length"), [(-1, 0), (0, 0), (3, 3), (6, 6), (20, 6)])
def test_one_row_has_the_whole_budget(total, length):
    draft = make_draft([6], [2])
    weights = jnp.full(1, 0.25, jnp.float32)
    assert share(draft, jnp.asarray(total, jnp.int32), weights=weights).length.tolist() == [length]


def test_a_draft_made_by_hand_needs_no_source():
    """It is the row's own where there is a match, and neural where there is none."""
    length, match = jnp.array([4, 4, 0], jnp.int32), jnp.array([5, 0, 0], jnp.int32)
    by_hand = jax_sa.Draft(jnp.ones((3, 4), jnp.int32), length, match, match)
    assert by_hand.source.tolist() == [Source.OWN, Source.NEURAL, Source.NONE]
    source = jnp.array([Source.OWN, Source.NEURAL, Source.NONE], jnp.int32)
    whole = dataclasses.replace(by_hand, source=source)
    for most in range(9):
        lengths = [jax_sa.share_budget(d, most).length.tolist() for d in (by_hand, whole)]
        assert lengths[0] == lengths[1]
    merged = jax_sa.merge_drafts(by_hand, jnp.full((3, 2), 7, jnp.int32))
    assert merged.source.tolist() == [Source.OWN, Source.NEURAL, Source.NEURAL]
