"""Models as `jax_sa.Decoder` wants them, made of the forward functions that other stacks have.

Letters: B rows, T tokens of a block, C capacity of a row's cache, V vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_sa._checks import check_choice, check_int
from jax_sa._same_code import warn_if_written_anew


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """A cache of B rows around whatever a stack remembers of their tokens."""

    length: jax.Array
    """int32[B] the tokens of each row that it holds; only the decoder changes it."""
    kv: Any
    """The stack's own cache, a pytree of arrays."""
    capacity: int | None = dataclasses.field(default=None, metadata={"static": True})
    """C, the tokens that a row has room for. Where it is known, prompts and new tokens that do not
    fit are an error. None: unknown."""


def from_forward(
    forward: Callable[..., tuple[jax.Array, Any]],
    init_kv: Callable[[int, int], Any],
    *,
    index: str = "row",
) -> "ForwardModel":
    """A model for `jax_sa.Decoder`, made of a stack's forward function that has a cache.

        model = jax_sa.from_forward(forward, init_kv)
        cache = model.init_cache(rows, prompts.shape[1] + max_new_tokens)
        jax_sa.generate(model, params, prompts, prompt_lengths, cache, ...)

    `forward(params, tokens int32[B, T], positions int32[B, T], kv)` returns logits [B, T, V] and
    the cache. It stores what later tokens need of token `tokens[b, t]` at `positions[b, t]`, and
    lets it attend to the positions of its row up to that: with the mask
    `jnp.arange(C) <= positions[..., None]`, bool[B, T, C]. A stack that keeps an index of its own
    in the cache is given `positions[:, 0]` for it; what it makes of it afterwards does not matter.

    Args:
      forward: as above. Give the same function object each time, or it is compiled anew.
      init_kv: `init_kv(rows, capacity)` makes the stack's own cache, a pytree of arrays.
      index: "row" where rows may stand at different positions. "batch" where the stack has one
        index for all rows, such as a single `dynamic_update_slice`: then `forward` and `init_kv`
        are called for one row, B = 1, and `jax.vmap` makes B rows of it. That serves named axes
        too, since an axis of rows never shows.

    Returns:
      The model, a function `model(params, tokens, cache)` with a method `init_cache(rows,
      capacity)` that makes its `jax_sa.KVCache`. Those of the same functions are equal, and share
      compiled code.

    Raises:
      ValueError, TypeError: naming the argument.
    """
    return ForwardModel(
        _check_function("forward", forward),
        _check_function("init_kv", init_kv),
        check_choice("index", index, ("row", "batch")),
    )


def from_whole_pass(forward: Callable[[Any, jax.Array], jax.Array]) -> "WholePassModel":
    """A model for `jax_sa.Decoder`, made of a forward function without a cache.

    For stacks whose own cache takes one token at a time, and for a first try of any. Each step
    runs the whole text through the stack, so a step costs as much as a prompt of C tokens,
    however many tokens it verifies: drafts save just as many steps, and without them this is slow.

    Args:
      forward: `forward(params, tokens int32[B, C])` returns logits [B, C, V]. No token attends to a
        later one, so whatever stands beyond a row's text does not matter.

    Returns:
      As `from_forward`.

    Raises:
      TypeError: `forward` is no function.
    """
    return WholePassModel(_check_function("forward", forward))


@dataclasses.dataclass(frozen=True)
class ForwardModel:
    """What `from_forward` returns."""

    forward: Callable[..., tuple[jax.Array, Any]]
    init_kv: Callable[[int, int], Any]
    index: str

    def init_cache(self, rows: int, capacity: int) -> KVCache:
        """An empty cache of B rows with room for C tokens each."""
        rows, capacity = check_int("rows", rows, 1), check_int("capacity", capacity, 1)
        if self.index == "row":
            kv = self.init_kv(rows, capacity)
        else:
            of_one = self.init_kv(1, capacity)
            kv = jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x)[None], rows, axis=0), of_one)
        return KVCache(jnp.zeros(rows, jnp.int32), kv, capacity)

    def __call__(self, params: Any, tokens: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
        """Logits [B, T, V] of a block, and the cache with it."""
        positions = _positions(tokens, cache)
        if self.index == "row":
            logits, kv = self.forward(params, tokens, positions, cache.kv)
            return logits, dataclasses.replace(cache, kv=kv)

        def read(tokens: jax.Array, positions: jax.Array, kv: Any) -> tuple[jax.Array, Any]:
            logits, kv = self.forward(params, tokens[None], positions[None], kv)
            return logits[0], kv

        logits, kv = jax.vmap(read)(tokens, positions, cache.kv)
        return logits, dataclasses.replace(cache, kv=kv)


@dataclasses.dataclass(frozen=True)
class WholePassModel:
    """What `from_whole_pass` returns; its cache is the text, int32[B, C]."""

    forward: Callable[[Any, jax.Array], jax.Array]

    def init_cache(self, rows: int, capacity: int) -> KVCache:
        """An empty cache of B rows with room for C tokens each."""
        rows, capacity = check_int("rows", rows, 1), check_int("capacity", capacity, 1)
        return KVCache(jnp.zeros(rows, jnp.int32), jnp.zeros((rows, capacity), jnp.int32), capacity)

    def __call__(self, params: Any, tokens: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
        """Logits [B, T, V] of a block, and the cache with it."""
        positions = _positions(tokens, cache)

        def write(text: jax.Array, places: jax.Array, values: jax.Array) -> jax.Array:
            return text.at[places].set(values, mode="drop")

        text = jax.vmap(write)(cache.kv, positions, tokens)
        logits = self.forward(params, text)
        logits = jnp.take_along_axis(logits, positions[..., None], axis=1, mode="clip")
        return logits, dataclasses.replace(cache, kv=text)


def _positions(tokens: jax.Array, cache: KVCache) -> jax.Array:
    """int32[B, T] where each token of a block stands in its row's text."""
    return cache.length[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]


def _check_function(name: str, function: Any) -> Any:
    if not callable(function):
        raise TypeError(f"{name}: expected a function, got {type(function).__name__}")
    warn_if_written_anew(name, function)
    return function
