"""The distribution that tokens are drawn from: a model's logits, cut and scaled.

Letters: B rows, T places (the positions that logits are given for), V vocabulary.
"""

import dataclasses
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_sa._checks import check_array, check_int

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-37, 1e37
"""Beyond these, a float32 or its reciprocal is subnormal, which devices flush to zero."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: from softmax(logits / temperature), cut to its likeliest tokens.

    Each option is one number for all rows, or an array with one number per row. A number out of
    range is an error. In an array, a temperature below 0 or NaN is greedy, and a `top_k` or `top_p`
    that is too small keeps one token.

    Where the logits of a place hold a NaN or +inf, or nothing but -inf, the choice there is greedy
    whatever the temperature: the first NaN, else the first of the largest logits.
    """

    key: jax.Array
    """A PRNG key. The same key draws the same tokens with and without `jax_enable_x64`."""
    temperature: jax.Array | float = 1.0
    """float32[B]; 0 is greedy. Below 1e-37 it counts as 0, above 1e37 as 1e37."""
    top_k: jax.Array | int | None = None
    """int32[B]: keep the `top_k` largest logits, and those that equal the last of them."""
    top_p: jax.Array | float | None = None
    """float32[B]: of the tokens that `top_k` keeps, keep the fewest, likeliest first, whose
    probabilities reach `top_p`, and those that equal the last of them (Holtzman et al. 2020)."""


def check_sampling(sampling: Any, rows: int) -> Sampling:
    """The sampling with every number as an array, each of `rows` numbers or one for all."""
    if not isinstance(sampling, Sampling):
        raise TypeError(f"sampling: expected a jax_sa.Sampling, got {type(sampling).__name__}")

    def option(name: str, dtype: Any, check: Callable[[Any], Any]) -> jax.Array:
        value = getattr(sampling, name)
        if isinstance(value, bool | np.bool_):
            raise TypeError(f"{name}: expected a number or an array, got {value!r}")
        if isinstance(value, numbers.Real):
            return jnp.asarray(check(value), dtype)
        check_array(name, value, dtype, () if np.shape(value) == () else (rows,))
        return jnp.asarray(value)

    return Sampling(
        sampling.key,
        option("temperature", jnp.float32, _check_temperature),
        None
        if sampling.top_k is None
        else option("top_k", jnp.int32, lambda value: check_int("top_k", value, 1)),
        None if sampling.top_p is None else option("top_p", jnp.float32, _check_top_p),
    )


def _check_temperature(value: Any) -> float:
    if not 0 <= value < float("inf"):
        raise ValueError(f"temperature: expected a finite number of at least 0, got {value!r}")
    return min(float(value), MAX_TEMPERATURE)


def _check_top_p(value: Any) -> float:
    if not 0 < value <= 1:
        raise ValueError(f"top_p: expected a number in (0, 1], got {value!r}")
    return float(value)


def of_first_step(sampling: Sampling) -> Sampling:
    """The sampling of a generation's first step, in arrays of its own, with a typed key.

    Its key is a hash of the caller's: seeds that follow each other, as those of steps do, must not
    give two generations some keys in common.
    """
    (key,) = jax.random.split(sampling.key, 1)
    key = jax.random.wrap_key_data(jax.random.key_data(key), impl=jax.random.key_impl(key))
    return dataclasses.replace(jax.tree.map(jnp.copy, sampling), key=key)


def of_next_step(sampling: Sampling) -> Sampling:
    """The sampling of the step after: its key's number is one more.

    A hash of the key, as `jax.random.split` makes it, is hundreds of operations to compile in each
    block. Keys that differ by one are as good as any others for JAX's generators, which are made
    for that (Salmon et al. 2011).
    """
    data = jax.random.key_data(sampling.key)
    more = np.zeros(data.shape[-1], np.uint32)
    more[-1] = 1
    key = jax.random.wrap_key_data(data + more, impl=jax.random.key_impl(sampling.key))
    return dataclasses.replace(sampling, key=key)


def spread(sampling: Sampling, row: jax.Array) -> Sampling:
    """The sampling of each place: `row` int32[T] holds the row that a place belongs to."""
    return _of_places(
        sampling, lambda value: value[row] if value.ndim else jnp.broadcast_to(value, row.shape)
    )


def repeat(sampling: Sampling, rows: int, count: int) -> Sampling:
    """The sampling of each place, where each of B rows has so many, one row after the other."""

    def of_places(value: jax.Array) -> jax.Array:
        of_rows = value[:, None] if value.ndim else value
        return jnp.broadcast_to(of_rows, (rows, count)).reshape(-1)

    return _of_places(sampling, of_places)


def _of_places(sampling: Sampling, of_places: Callable[[jax.Array], jax.Array]) -> Sampling:
    options = (sampling.temperature, sampling.top_k, sampling.top_p)
    return Sampling(sampling.key, *jax.tree.map(of_places, options))


class Distribution(NamedTuple):
    """The few numbers per place that turn one of its logits into a probability.

    So the probabilities of all places are never in memory: each that is asked for is computed from
    its logit. Every field has the shape of the places, here [T].
    """

    greedy: jax.Array
    """bool[T] all probability is on `best`."""
    best: jax.Array
    """int32[T] the first token with the largest logit, or the first NaN."""
    peak: jax.Array
    """float32[T] the largest logit."""
    temperature: jax.Array
    """float32[T]."""
    smallest: jax.Array
    """float32[T] the smallest logit that `top_k` and `top_p` keep."""
    total: jax.Array
    """float32[T] the sum over the vocabulary of exp(score)."""

    def at(self, place: jax.Array) -> "Distribution":
        """The distribution at some of the places."""
        return jax.tree.map(lambda field: field[place], self)

    def scores(self, logits: jax.Array) -> jax.Array:
        """float32[T, V] whose softmax tokens are drawn from: at most 0, -inf for those excluded."""
        tokens = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
        return jax.tree.map(lambda field: field[..., None], self)._score(logits, tokens)

    def probability(self, logit: jax.Array, token: jax.Array) -> jax.Array:
        """float32[T] the probability of one token per place, with the logit it has there."""
        return jnp.exp(self._score(logit, token)) / self.total

    def _score(self, logit: jax.Array, token: jax.Array) -> jax.Array:
        logit = logit.astype(jnp.float32)
        # The largest is 0 first, so that no temperature, however small, makes an infinity of it.
        score = jnp.where(logit >= self.smallest, (logit - self.peak) / self.temperature, -jnp.inf)
        return jnp.where(self.greedy, jnp.where(token == self.best, 0.0, -jnp.inf), score)


def distribution(logits: jax.Array, sampling: Sampling) -> Distribution:
    """The distribution at each place of logits [T, V], with a sampling of T numbers."""
    peak = jnp.max(logits, axis=-1).astype(jnp.float32)
    warm = (sampling.temperature >= MIN_TEMPERATURE) & jnp.isfinite(peak)
    uncut = Distribution(
        greedy=~warm,
        best=jnp.argmax(logits, axis=-1).astype(jnp.int32),
        peak=peak,
        temperature=jnp.where(warm, jnp.minimum(sampling.temperature, MAX_TEMPERATURE), 1.0),
        smallest=jnp.full_like(peak, -jnp.inf),
        total=jnp.ones_like(peak),
    )
    cut = uncut._replace(smallest=_smallest_kept(logits, uncut, sampling))
    return cut._replace(total=jnp.sum(jnp.exp(cut.scores(logits)), axis=-1))


def _smallest_kept(logits: jax.Array, uncut: Distribution, sampling: Sampling) -> jax.Array:
    """float32[T] the smallest logit that `top_k` and `top_p` keep."""
    if sampling.top_k is None and sampling.top_p is None:
        return uncut.smallest
    descending = -jnp.sort(-logits.astype(jnp.float32), axis=-1)
    rank = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    kept = jnp.ones(logits.shape, bool)
    if sampling.top_k is not None:
        kept = rank < sampling.top_k[:, None]
    if sampling.top_p is not None:
        top_p = sampling.top_p[:, None]
        # Greedy places come out wrong here, and are not asked.
        scores = (descending - uncut.peak[:, None]) / uncut.temperature[:, None]
        probability = jax.nn.softmax(jnp.where(kept, scores, -jnp.inf), axis=-1)
        before = jnp.cumsum(probability, axis=-1) - probability
        kept &= (before < top_p) | (top_p >= 1.0)
    kept |= rank == 0
    return jnp.min(jnp.where(kept, descending, jnp.inf), axis=-1)


def draw(key: jax.Array, rows: int, chances: int, vocabulary: int) -> tuple[jax.Array, jax.Array]:
    """A step's random numbers, all by one draw: for each, XLA compiles hundreds of operations.

    Returns:
      float32[B, chances] in [0, 1), and float32[B, V] with the standard Gumbel distribution. The
      token where a score and such a number sum up to the most is drawn from the softmax of the
      scores (Gumbel 1954; Maddison et al. 2014).
    """
    uniform = jax.random.uniform(key, (rows, vocabulary + chances), jnp.float32)
    of_tokens, of_drafts = jnp.split(uniform, [vocabulary], axis=1)
    above_0 = jnp.maximum(of_tokens, jnp.finfo(jnp.float32).tiny)
    return of_drafts, -jnp.log(-jnp.log(above_0))
