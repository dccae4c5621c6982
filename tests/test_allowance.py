"""The time that drafts may lose, alone and in a decoder whose drafts fail."""

import jax
import jax.numpy as jnp
import pytest
import toy_model
from hypothesis import given, settings
from hypothesis import strategies as st

import jax_sa
from jax_sa import allowance

LIMIT = 200


def after(before, cost, gained, limit):
    values = (before, cost, 1.0, gained)
    step = allowance.after_step(*(jnp.float32(x) for x in values), jnp.int32(limit))
    return float(step)


@pytest.mark.parametrize(("limit", "steps"), [(0, 0.0), (1, 0.03), (50, 1.5), (9999, 1.5)])
def test_before_the_first_step(limit, steps):
    assert float(allowance.begin(jnp.int32(limit))) == pytest.approx(steps)


@pytest.mark.parametrize("limit", [1, 20, 50, 51, 200, 5000])
def test_all_of_it_is_allowed_by_the_end(limit):
    left = float(allowance.begin(jnp.int32(limit)))
    for _ in range(limit):
        left = after(left, 1.0, 1.0, limit)
    assert left == pytest.approx(allowance.MAX_LOSS * limit, rel=1e-3)


def test_what_is_gained_may_be_lost():
    assert after(1.5, 1.2, 3.0, 50) == pytest.approx(1.5 + 2.0 - 0.2)
    assert after(1.5, 2.5, 1.0, 50) == pytest.approx(0.0)


@pytest.mark.parametrize("narrowest", [0.0, -1.0, jnp.inf, jnp.nan])
def test_without_a_cost_to_compare_with_nothing_is_lost(narrowest):
    costs = jnp.asarray([narrowest, 2.0, 90.0], jnp.float32)
    tokens = jnp.ones(3, jnp.float32)
    assert allowance.discount(tokens, costs, jnp.float32(0.5)).tolist() == [1.0] * 3
    step = allowance.after_step(
        jnp.float32(0.5), costs[1], costs[0], jnp.float32(1.0), jnp.int32(50)
    )
    assert float(step) == 0.5


@pytest.mark.parametrize(
    ("left", "want"), [(0.0, [4.0, 2.0, 2.0]), (1.0, [4.0, 4.0, 2.0]), (2.5, [4.0] * 3)]
)
def test_a_step_that_may_lose_more_must_promise_more(left, want):
    tokens, costs = jnp.full(3, 4.0), jnp.asarray([2.0, 4.0, 7.0], jnp.float32)
    assert allowance.discount(tokens, costs, jnp.float32(left)).tolist() == want


@settings(deadline=None, max_examples=50)
@given(
    limit=st.integers(1, 120),
    steps=st.lists(st.tuples(st.floats(1.0, 4.0), st.integers(1, 5)), min_size=120, max_size=120),
)
def test_steps_within_it_lose_no_more_than_promised(limit, steps):
    """Whatever is accepted: the sum of the costs, where each step could have failed."""
    left, written, time = float(allowance.begin(jnp.int32(limit))), 0, 0.0
    for cost, confirmed in steps:
        if written == limit:
            break
        verifies = cost - 1.0 <= left
        gained = min(confirmed, limit - written) if verifies else 1
        cost = cost if verifies else 1.0
        left = after(left, cost, float(gained), limit)
        written, time = written + gained, time + cost
    assert time <= (1.0 + allowance.MAX_LOSS) * limit + 0.01


def text_that_never_goes_on(length):
    """Zeros and ones: what followed the longest suffix that occurred before never follows again."""
    text = "0"
    while len(text) < length:
        suffix = next(text[i:] for i in range(1, len(text) + 1) if text[i:] in text[:-1])
        before = text[text.rindex(suffix, 0, len(text) - 1) + len(suffix)]
        text += "1" if before == "0" else "0"
    return jnp.asarray([int(token) for token in text], jnp.int32)


def recite(text, tokens, cache):
    """A model that writes int32[C] `text`, whatever it reads."""
    position = cache.length[:, None] + 1 + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    return jax.nn.one_hot(text[position], toy_model.VOCABULARY), cache


def recite_anew(text, tokens, cache):
    return recite(text, tokens, cache)  # another function is compiled anew


def time_lost(model, text, wide):
    """The time that the drafts of a single row lose, in steps without drafts."""
    decoder = jax_sa.Decoder(model, max_draft=1)
    costs = jnp.asarray([1.0, wide], jnp.float32)
    cache = toy_model.init_cache(1, text.size)
    done = decoder.generate(
        *(text, text[None, :1], jnp.ones(1, jnp.int32), cache),
        max_new_tokens=LIMIT,
        state=jax_sa.init(1, text.size),
        costs=costs,
    )
    assert done.tokens[0].tolist() == text[1 : 1 + LIMIT].tolist()
    verified = int(done.drafted[0])  # one in each step that has a draft
    return int(done.steps[0]) + (wide - 1.0) * verified - LIMIT


@pytest.mark.parametrize("wide", [1.2, 1.4])
def test_drafts_that_fail_lose_no_more_than_promised(wide, monkeypatch):
    text = text_that_never_goes_on(LIMIT + 8)
    promised = allowance.MAX_LOSS * LIMIT
    assert 0 < time_lost(recite, text, wide) <= promised + 1e-3
    monkeypatch.setattr(allowance, "MAX_LOSS", 1e3)
    assert time_lost(recite_anew, text, wide) > 1.5 * promised
