"""The time that drafts may lose before only long matches are verified.

It is counted in steps without drafts, by the costs that steps are chosen by. What drafts have
gained may be lost again.

Letters: W widths that are compared.
"""

import jax
import jax.numpy as jnp

MAX_LOSS = 0.03
"""The time that drafts may lose, as a share of the time that is taken without drafts."""

IN_ADVANCE = 50
"""Drafts may lose at once what they may in the first so many tokens of an answer: with less, none
would be tried where the second token of a step costs as much as the first, as on a CPU."""

BEYOND = 2.0
"""A step that might lose more than is allowed must promise so many times the tokens per cost of a
step without drafts, beside the margin that any step needs (`jax_sa.budget.MARGIN`). Such drafts
follow long matches, and hardly ever fail."""


def begin(limit: jax.Array) -> jax.Array:
    """float32[] the allowance before the first step of answers of int32[] tokens at most."""
    return MAX_LOSS * jnp.minimum(limit, IN_ADVANCE).astype(jnp.float32)


def discount(tokens: jax.Array, costs: jax.Array, allowance: jax.Array) -> jax.Array:
    """float32[W] tokens, divided by `BEYOND` for widths that would lose too much if drafts failed.

    Args:
      tokens: float32[W] expected of a step of each width, the narrowest first.
      costs: float32[W] of such a step.
      allowance: float32[] steps.
    """
    return jnp.where(_extra_steps(costs, costs[0]) > allowance, tokens / BEYOND, tokens)


def after_step(
    allowance: jax.Array,
    cost: jax.Array,
    narrowest: jax.Array,
    gained: jax.Array,
    limit: jax.Array,
) -> jax.Array:
    """float32[] the allowance after one step more.

    Args:
      allowance: float32[] before.
      cost: float32[] of the step.
      narrowest: float32[] the cost of a step without drafts.
      gained: float32[] how many steps without drafts would have written the same, at least 1.
      limit: int32[] tokens of the answers at most. When so many are written, all that drafts may
        lose has been allowed.
    """
    later = MAX_LOSS - begin(limit) / jnp.maximum(limit, 1).astype(jnp.float32)
    return allowance + later * gained + (gained - 1.0) - _extra_steps(cost, narrowest)


def _extra_steps(costs: jax.Array, narrowest: jax.Array) -> jax.Array:
    """float32[...] by how many steps without drafts a step takes longer than one of these.

    Where that has no cost to compare with, no step counts as longer.
    """
    is_known = (narrowest > 0.0) & jnp.isfinite(narrowest)
    return jnp.where(is_known, costs / narrowest - 1.0, 0.0)
