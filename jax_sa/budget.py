"""The drafted tokens that are worth verifying: the chance that they hold, and one budget for all.

Letters: B rows, K draft tokens, W budgets or widths that are compared.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jax_sa._checks import check_array, check_int
from jax_sa._explicit import follow_rows
from jax_sa.automaton import DRAFT_FILL, Draft, Source

FAILURE_RATE = 1.6
"""A drafted token fails with chance `FAILURE_RATE / (match length + its place in the draft)`.

Measured as 1.4 to 1.8 for matches of up to 8 tokens on two sets of recorded responses of language
models, and 0.8 to 1.2 for longer ones, where it hardly matters."""

POOL_FAILURE_RATE = 2.2
"""`FAILURE_RATE` of a token drafted from a pool, measured on one of these sets: 2.2 in all, 2.1 for
matches of up to 8 tokens."""

POOL_WEIGHT = 0.5
"""A match in a pool is worth drafting this much of what one in the row's own text is. Measured on
the same responses; `lookup` scales its `draft_factor` by the same."""

NEURAL_MATCH_LENGTH = 3
"""A neural draft is as trustworthy as the automaton's after a match of so many tokens."""

MAX_COUNTED_MATCH = 64
"""Longer matches count as this long when a budget is shared."""

PRIOR_FAILURES = 4.0
"""A row's own record counts as much as the general rule after so many expected failures."""

MEMORY = 0.95
"""A row's record of earlier steps counts this much less after each step with a draft."""

MARGIN = 0.05
"""Drafts are verified only where they promise so much more tokens per cost than a step without:
the costs were measured on a few steps, and are off by a few per cent."""

_ROUNDING = 2.0**-20
"""By how much factors may differ and still count as one: a few roundings of float32."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Record:
    """The failures of the drafts of B rows, beside those that `FAILURE_RATE` expects."""

    expected: jax.Array
    """float32[B] failures that were to be expected of the tokens verified, recent ones mostly."""
    seen: jax.Array
    """float32[B] drafts that failed, recent ones mostly."""

    def strain(self) -> jax.Array:
        """float32[B] how many times likelier the row's drafts fail than the general rule says."""
        return (PRIOR_FAILURES + self.seen) / (PRIOR_FAILURES + self.expected)


def init_record(like: jax.Array) -> Record:
    """A record without history, of as many rows as `like` [B] has."""
    none = jnp.zeros_like(like, jnp.float32)
    return Record(none, none)


def update_record(record: Record, draft: Draft, confirmed: jax.Array) -> Record:
    """The record after a step that verified `draft` and confirmed int32[B] tokens of it.

    A draft that ends before it fails, and a row without a draft, count as no failure.
    """
    verified = draft.length > 0
    failed = verified & (confirmed < draft.length)
    tried = jnp.minimum(confirmed + 1, draft.length)
    expected = jnp.sum(jnp.where(_places(draft) <= tried[:, None], _failure(draft), 0.0), axis=1)
    kept = jnp.where(verified, MEMORY, 1.0)
    return Record(
        expected=record.expected * kept + expected,
        seen=record.seen * kept + failed.astype(jnp.float32),
    )


def survival(draft: Draft, strain: jax.Array) -> jax.Array:
    """float32[B, K] the chance that a drafted token and all before it hold; 0 beyond the draft.

    Args:
      draft: of B rows and K tokens.
      strain: float32[B] of `Record.strain`.
    """
    holds = jnp.clip(1.0 - strain[:, None] * _failure(draft), 0.0, 1.0)
    holds = jnp.where(_places(draft) <= draft.length[:, None], holds, 0.0)
    # A product for each place, which is one kernel on a GPU.
    before = _places(draft) <= _places(draft).T
    return jnp.prod(jnp.where(before[None], holds[:, None], 1.0), axis=-1)


@follow_rows()
def share_budget(
    draft: Draft, budget: jax.Array | int, *, weights: jax.Array | None = None
) -> Draft:
    """Cuts the drafts of a batch by one common factor, so that all together fit a budget.

    Row b keeps `min(length, round(f * weight * min(match_length, 64)))` tokens, with the largest
    factor f for which their sum is at most the budget. The chance that a draft goes on falls like
    one over match length and place, so this verifies the tokens that are likeliest to hold. A row
    whose draft is neural counts as one with a match of `NEURAL_MATCH_LENGTH` tokens, and one whose
    draft is from a pool as one with `POOL_WEIGHT` of its weight. Rows that tie at that factor are
    cut alike, so a part of the budget may be left. The work is in proportion to B * B * K.

    Args:
      draft: of B rows and K tokens.
      budget: drafted tokens of all rows together, an int of at least 0, or int32[] on the device
        (below 0 counts as 0), so that nothing is recompiled when it changes.
      weights: float32[B], above 0, such as 1/2 for a row whose drafts fail more often. None: 1.

    Returns:
      The draft with `length` and `tokens` cut.

    Raises:
      ValueError, TypeError: at trace time, naming the argument.
    """
    (rows,) = check_array("draft.length", getattr(draft, "length", None), jnp.int32, ("B",))
    if isinstance(budget, jax.Array):
        check_array("budget", budget, jnp.int32, ())
    else:
        budget = jnp.asarray(check_int("budget", budget, 0), jnp.int32)
    if weights is None:
        weights = jnp.ones(rows, jnp.float32)
    check_array("weights", weights, jnp.float32, (rows,))
    return cut_draft(draft, lengths_within(budget_needed(draft, weights), budget))


def budget_needed(draft: Draft, weights: jax.Array, beside: jax.Array | None = None) -> jax.Array:
    """float32[B, K] the least budget with which `share_budget` keeps a token.

    It is the number of tokens that are kept with the least factor that keeps this one; infinite
    beyond a draft's length. A sum of floats, as a GPU's kernel leaves it: an int is a kernel more.

    Args:
      draft: of B rows and K tokens.
      weights: float32[B].
      beside: int32[B] other tokens of the rows, which are within the budget anyway. None: none.
    """
    place, is_drafted = _places(draft), _places(draft) <= draft.length[:, None]
    if beside is None:
        beside = jnp.zeros_like(draft.length)
    if draft.length.shape[0] == 1:  # the one row has all of it
        return jnp.where(is_drafted, (place + beside[:, None]).astype(jnp.float32), jnp.inf)
    match = jnp.clip(_match_length(draft), 1.0, MAX_COUNTED_MATCH)
    trust = jnp.where(draft.source == Source.POOL, POOL_WEIGHT, 1.0).astype(jnp.float32)
    scale = weights * trust * match  # the tokens that f = 1 keeps
    # Rounding must not come between a factor and the tokens that it is just enough for.
    factor = (place.astype(jnp.float32) - 0.5) / scale[:, None] * (1.0 + _ROUNDING)
    drafted, others = draft.length.astype(jnp.float32), beside.astype(jnp.float32)
    lengths = jnp.floor(factor[..., None] * scale[None, None] + 0.5)
    kept = jnp.minimum(lengths, drafted[None, None]) + others[None, None]
    return jnp.sum(jnp.where(is_drafted[..., None], kept, jnp.inf), axis=-1)


def lengths_within(needed: jax.Array, budget: jax.Array) -> jax.Array:
    """int32[B] the tokens that int32[] `budget` keeps of each draft, by `budget_needed`."""
    return jnp.sum((needed <= budget.astype(jnp.float32)).astype(jnp.int32), axis=1)


def expected_tokens(survival: jax.Array, verified: jax.Array) -> jax.Array:
    """float32[W, B] drafted tokens that are expected to hold, for each of W ways to cut the drafts.

    Args:
      survival: float32[B, K], as `survival` gives it.
      verified: bool[W, B, K] the tokens that are verified.
    """
    return jnp.sum(jnp.where(verified, survival[None], 0.0), axis=2)


def tokens_per_cost(tokens: jax.Array | float, costs: jax.Array) -> jax.Array:
    """float32[...] tokens by costs; 0 where a cost is not above 0, or is infinite or NaN."""
    return jnp.where(costs > 0.0, tokens / costs, 0.0)


def best_width(tokens: jax.Array, costs: jax.Array) -> jax.Array:
    """int32[] the width with the most tokens per cost: the narrowest unless it is beaten by far.

    Args:
      tokens: float32[W] expected of a step of each width, the narrowest first.
      costs: float32[W] of such a step. A width whose cost is not above 0, or is infinite or NaN,
        is worth nothing.
    """
    worth = tokens_per_cost(tokens, costs)
    best, index = (1.0 + MARGIN) * worth[0], jnp.zeros_like(worth[0], jnp.int32)
    for width in range(1, worth.size):  # in one kernel on a GPU, with what comes after
        is_better = worth[width] > best
        best, index = jnp.where(is_better, worth[width], best), jnp.where(is_better, width, index)
    return index


def estimate_costs(tokens: Any, platform: str) -> jax.Array:
    """float32[W] relative costs of steps that verify int[W] tokens, where none were measured.

    A step costs one for what it does anyway, and for each token 0.15 on a CPU, where products with
    few rows are already bound by arithmetic, or 0.002 on an accelerator, where they are bound by
    reading the weights. `calibrate` measures the real ones.
    """
    per_token = 0.15 if platform == "cpu" else 0.002
    return 1.0 + per_token * jnp.asarray(tokens, jnp.float32)


@follow_rows()
def cut_draft(draft: Draft, lengths: jax.Array) -> Draft:
    """The draft with at most int32[B] `lengths` tokens in each row."""
    length = jnp.clip(lengths, 0, draft.length)
    tokens = jnp.where(_places(draft) <= length[:, None], draft.tokens, DRAFT_FILL)
    return dataclasses.replace(draft, tokens=tokens, length=length)


def failure_rate(source: jax.Array, match_length: jax.Array, place: jax.Array) -> jax.Array:
    """float32 of shapes that broadcast: the chance that a drafted token fails if all before hold.

    Args:
      source: int32[...] a `Source`.
      match_length: int32[...] tokens; a neural draft counts as one with a match.
      place: int32[...] of the token in its draft, 1, ..., K.
    """
    distance = (_counted_match(source, match_length) + place).astype(jnp.float32)
    rate = jnp.where(source == Source.POOL, POOL_FAILURE_RATE, FAILURE_RATE).astype(jnp.float32)
    return jnp.minimum(rate / distance, 1.0)


def _counted_match(source: jax.Array, match_length: jax.Array) -> jax.Array:
    return jnp.where(source == Source.NEURAL, NEURAL_MATCH_LENGTH, match_length)


def _match_length(draft: Draft) -> jax.Array:
    """float32[B]."""
    return _counted_match(draft.source, draft.match_length).astype(jnp.float32)


def _failure(draft: Draft) -> jax.Array:
    """float32[B, K] the chance that a drafted token fails if all before it held."""
    return failure_rate(draft.source[:, None], draft.match_length[:, None], _places(draft))


def _places(draft: Draft) -> jax.Array:
    """int32[1, K] 1, ..., K."""
    return jnp.arange(1, draft.tokens.shape[1] + 1, dtype=jnp.int32)[None]
