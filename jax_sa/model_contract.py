"""What a decoder can see of a model and its cache before it runs: their shapes.

Letters: B rows, P prompt tokens, G maximum new tokens, T tokens of a block, V vocabulary. What only
running shows is the work of `jax_sa.check_model`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_sa._checks import check_array
from jax_sa.prompts import known
from jax_sa.state import AnyState

WRAP = "jax_sa.KVCache(length, kv) wraps any pytree, and jax_sa.from_forward makes its model"


def check_cache(cache: Any, rows: int) -> None:
    """Raises ValueError or TypeError unless `cache` is a dataclass with int32[B] `length`."""
    if not dataclasses.is_dataclass(cache) or not hasattr(cache, "length"):
        raise TypeError(
            "cache: expected a dataclass, registered as a pytree, with a field `length` int32[B], "
            f"got {type(cache).__name__}: {WRAP}"
        )
    check_array("cache.length", cache.length, jnp.int32, (rows,))


def check_logits_of_block(logits: Any, tokens: jax.Array) -> None:
    """Raises ValueError or TypeError unless logits are those of all tokens of a block [B, T].

    Or, for greedy decoding, the tokens that they choose, int32[B, T].
    """
    rows, width = tokens.shape
    got = getattr(logits, "shape", None)
    if got is None or not hasattr(logits, "dtype"):
        raise TypeError(f"logits: expected an array [B, T, V], got {type(logits).__name__}")
    is_float = jnp.issubdtype(logits.dtype, jnp.floating)
    if got[:2] != (rows, width) or len(got) != (3 if is_float else 2):
        raise ValueError(
            f"logits: expected the model to return [B, T, V] = [{rows}, {width}, V], those of "
            f"every token of the block and not of the last alone, got {logits.dtype}{list(got)}"
        )


def check_returned_cache(returned: Any, cache: Any) -> None:
    """Raises TypeError unless a model returns its cache with the same arrays.

    The length that it returns is not looked at: the decoder keeps its own.
    """
    if type(returned) is type(cache):
        returned = dataclasses.replace(returned, length=cache.length)
    check_same_arrays(returned, cache)


def check_same_arrays(returned: Any, cache: Any) -> None:
    """Raises TypeError unless a cache that a model returns has the arrays of the one it got."""
    if type(returned) is not type(cache):
        raise TypeError(
            f"cache: expected the model to return a {type(cache).__name__}, as it was given, got "
            f"{type(returned).__name__}"
        )
    before, after = _arrays(cache), _arrays(returned)
    for path in before | after:
        if before.get(path) != after.get(path):
            raise TypeError(
                "cache: expected the model to return it with the same arrays, but "
                f"cache{path} was {before.get(path, 'not there')} and came back as "
                f"{after.get(path, 'nothing')}"
            )


def check_room(
    prompts: Any, prompt_lengths: Any, limits: Any, max_new_tokens: int, cache: Any, state: Any
) -> None:
    """Raises ValueError where prompts and new tokens do not fit the cache or the automata.

    The cache must have room for P + G tokens more in every row, if it says what it has room for;
    the automata for the prompt and the new tokens of each row, or P + G where lengths and limits
    are not known yet.
    """
    width = prompts.shape[1]
    capacity = getattr(cache, "capacity", None)
    if isinstance(capacity, int):
        held = known(cache.length)
        need = width + max_new_tokens + (0 if held is None else int(held.max(initial=0)))
        if capacity < need:
            raise ValueError(
                f"cache: expected a capacity of at least {need}, for what it holds, a prompt of "
                f"{width} and {max_new_tokens} new tokens, got {capacity}"
            )
    if state is not None:
        check_state_room(prompt_lengths, limits, width, max_new_tokens, state)


def check_state_room(
    prompt_lengths: Any, limits: Any, width: int, max_new_tokens: int, state: AnyState
) -> None:
    """Raises ValueError where the automata lack room for prompts and new tokens.

    They need it for each row's own, or for P + G where lengths and limits are not known yet.
    """
    need, lengths, limits = width + max_new_tokens, known(prompt_lengths), known(limits)
    if lengths is not None and limits is not None:
        each = lengths.astype(np.int64) + np.clip(limits, 0, max_new_tokens)
        need = int(each[(lengths >= 1) & (lengths <= width)].max(initial=0))
    if state.max_seq_len < need:
        raise ValueError(
            f"state: expected a max_seq_len of at least {need}, for prompt and new tokens, got "
            f"{state.max_seq_len}"
        )


def check_logits_fn(logits_fn: Any, tree_nodes: int | None) -> None:
    """Raises ValueError or TypeError unless a decoder's `logits_fn` is None or can be called."""
    if logits_fn is None:
        return
    if not callable(logits_fn):
        raise TypeError(f"logits_fn: expected a function, got {type(logits_fn).__name__}")
    if tree_nodes is not None:
        raise ValueError("logits_fn: expected none with tree_nodes, whose places are no text")


def check_params(params: Any) -> None:
    """Raises TypeError for parameters that jit could not take."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, int | float | complex):
            raise TypeError(
                "params: expected a pytree of arrays, got a "
                f"{type(leaf).__name__} at params{jax.tree_util.keystr(path)}: of a module that is "
                "no pytree give its state, and merge the two in the model (nnx.split, nnx.merge)"
            )


def check_donated(donated: dict[str, Any], kept: dict[str, Any] | None = None) -> None:
    """Raises ValueError where an array is given that was donated before, or that stands twice.

    Args:
      donated: by name, what a call is about to donate.
      kept: by name, what it only reads.
    """
    seen = {id(leaf): where for where, leaf in _concrete(kept or {})}
    for where, leaf in _concrete(donated):
        name = where.partition(".")[0].partition("[")[0]
        if leaf.is_deleted():
            raise ValueError(
                f"{name}: {where} was donated to an earlier call and is gone: use what that call "
                "returned, or make another"
            )
        if id(leaf) in seen:
            raise ValueError(
                f"{name}: {where} is the same array as {seen[id(leaf)]}, but it is donated, so it "
                "can be used once: make each with jnp.zeros or jnp.copy of its own"
            )
        seen[id(leaf)] = where


def _concrete(trees: dict[str, Any]) -> list[tuple[str, jax.Array]]:
    """The arrays of pytrees that are no tracers, and where they stand."""
    return [
        (name + jax.tree_util.keystr(path), leaf)
        for name, tree in trees.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
    ]


def _arrays(tree: Any) -> dict[str, str]:
    """The dtype and shape of each array of a pytree, by where it stands."""
    return {
        jax.tree_util.keystr(path): f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
