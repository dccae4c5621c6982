"""Which drafted tokens the model confirms, in plain jnp.

Letters: B rows, K draft tokens, V vocabulary.
"""

import dataclasses
import numbers
from typing import Any

import jax
import jax.numpy as jnp

from jax_sa._checks import check_array, check_int
from jax_sa.automaton import DRAFT_FILL, Draft


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Accepted:
    """The tokens that a step emits, for B rows."""

    tokens: jax.Array
    """int32[B, 1 + K] the confirmed drafted tokens, then the model's own next token;
    `DRAFT_FILL` beyond `length`."""
    length: jax.Array
    """int32[B] emitted tokens, 1..1 + K."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: from softmax(logits / temperature), cut to its likeliest tokens.

    Each is one number for all rows, or an array of one per row. What is out of range is an error
    in a number; in an array, a temperature below 0 is greedy, and a `top_k` or `top_p` that is too
    small keeps one token.
    """

    key: jax.Array
    """A PRNG key."""
    temperature: jax.Array | float = 1.0
    """float32[B]; 0 is greedy."""
    top_k: jax.Array | int | None = None
    """int32[B]: keep the `top_k` largest logits, and what ties with the last."""
    top_p: jax.Array | float | None = None
    """float32[B]: of what `top_k` left, keep the fewest tokens, likeliest first, whose
    probabilities reach `top_p`, and what ties with the last (Holtzman et al. 2020)."""


def accept_greedy(draft: Draft, targets: jax.Array) -> Accepted:
    """Keeps the longest prefix of each draft that greedy decoding would have written.

    The output of a loop that emits this is token for token that of greedy decoding (Leviathan et
    al. 2023, section 2, at temperature 0).

    Args:
      draft: of B rows and K tokens; K may be 0.
      targets: what the model says after the last token and after each drafted one: logits
        [B, 1 + K, V] of a floating dtype, or the tokens int32[B, 1 + K] it would choose.

    Raises:
      ValueError, TypeError: at trace time, for a wrong shape or dtype.
    """
    rows, max_draft = _check_draft("draft", draft)
    chosen = _chosen_tokens(targets, rows, max_draft)
    length = 1 + _prefix_length(_drafted(draft) & (draft.tokens == chosen[:, :-1]))
    emitted = jnp.arange(1 + max_draft, dtype=jnp.int32)[None] < length[:, None]
    return Accepted(tokens=jnp.where(emitted, chosen, DRAFT_FILL), length=length)


def accept_sampled(
    key: jax.Array,
    draft: Draft,
    logits: jax.Array,
    temperature: jax.Array | float = 1.0,
    top_k: jax.Array | int | None = None,
    top_p: jax.Array | float | None = None,
) -> Accepted:
    """Keeps a prefix of each draft such that what is emitted has the model's own distribution.

    Speculative sampling (Leviathan et al. 2023, algorithm 1; Chen et al. 2023, algorithm 2) for a
    draft without probabilities, so one that is certain of each token: the token x is confirmed
    with probability p(x); the first that is not is replaced by one drawn from p without x,
    renormalised. After a draft that is confirmed to its end, one more is drawn from p.

    Args:
      key: a PRNG key.
      draft: of B rows and K tokens; K may be 0.
      logits: of the model, a floating dtype [B, 1 + K, V], after the last token and after each
        drafted one.
      temperature: as in `Sampling`, like `top_k` and `top_p`. Where it is 0, the result is that of
        `accept_greedy`.
      top_k: None: all tokens.
      top_p: None: all tokens.

    Raises:
      ValueError, TypeError: at trace time, naming the argument.
    """
    rows, max_draft = _check_draft("draft", draft)
    logits = _check_logits("logits", logits, rows, max_draft)
    sampling = check_sampling(Sampling(key, temperature, top_k, top_p), rows)
    scores = _scores(logits, sampling)
    confirm_key, draw_key = jax.random.split(key)

    drafted = draft.tokens[..., None] == _vocabulary(logits)
    probability = jax.nn.softmax(scores[:, :-1], axis=-1)
    probability = jnp.sum(jnp.where(drafted, probability, 0.0), axis=-1)
    confirmed = jax.random.uniform(confirm_key, (rows, max_draft)) < probability
    length = 1 + _prefix_length(_drafted(draft) & confirmed)

    # The model's own token comes where a token was refused, or after the draft, where none was.
    position = jnp.arange(1 + max_draft, dtype=jnp.int32)[None]
    tokens = jnp.pad(draft.tokens, ((0, 0), (0, 1)), constant_values=-1)
    tried = jnp.where(position < draft.length[:, None], tokens, -1)
    last = length[:, None] - 1
    refused = jnp.take_along_axis(tried, last, axis=1)
    scores = jnp.take_along_axis(scores, last[..., None], axis=1)[:, 0]
    own = jax.random.categorical(draw_key, _without(scores, refused)).astype(jnp.int32)
    tokens = jnp.where(position == last, own[:, None], tokens)
    return Accepted(tokens=jnp.where(position < length[:, None], tokens, DRAFT_FILL), length=length)


def merge_drafts(
    automaton_draft: Draft, neural_draft: Draft | jax.Array, threshold: int = 4
) -> Draft:
    """Chooses per row between the automaton's draft and a neural one.

    The rule: the automaton's draft is used where its match length, plus the length of the common
    prefix of both drafts, is at least `threshold`; elsewhere, and where the automaton drafts
    nothing, the neural one. A long repeated suffix is a better sign than a neural draft and a short
    one a worse, but each token on which the two agree speaks for the automaton's as much as a
    matching token before it. A threshold that no row reaches gives exactly the neural drafts.

    Where the automaton's draft is used but ends before the neural one does, the rest is filled with
    the tokens of the neural draft at the same positions: they predict fixed distances from the last
    token, whatever lies between.

    Args:
      automaton_draft: B rows and K tokens.
      neural_draft: B rows and M tokens, a `Draft` or int32[B, M], all of them drafted.
      threshold: the sum of match length and common prefix from which the automaton's draft is used,
        at least 1.

    Returns:
      A draft of B rows and max(K, M) tokens. `match_length` and `match_end` are the automaton's
      where its draft is used, else 0.

    Raises:
      ValueError, TypeError: at trace time, for a wrong shape or dtype or a threshold below 1.
    """
    threshold = check_int("threshold", threshold, 1)
    rows, max_draft = _check_draft("automaton_draft", automaton_draft)
    neural = neural_draft
    if not isinstance(neural, Draft):
        _, neural_width = check_array("neural_draft", neural, jnp.int32, (rows, "M"))
        none = jnp.zeros(rows, jnp.int32)
        neural = Draft(neural, jnp.full(rows, neural_width, jnp.int32), none, none)
    neural_rows, neural_width = _check_draft("neural_draft", neural)
    if neural_rows != rows:
        raise ValueError(f"neural_draft: expected {rows} rows, got {neural_rows}")

    shared = min(max_draft, neural_width)
    agree = automaton_draft.tokens[:, :shared] == neural.tokens[:, :shared]
    agree &= _drafted(automaton_draft)[:, :shared] & _drafted(neural)[:, :shared]
    use = automaton_draft.match_length >= threshold - _prefix_length(agree)
    use &= automaton_draft.length > 0

    width = max(max_draft, neural_width)
    from_automaton = use[:, None] & _widen(_drafted(automaton_draft), width)
    drafted = from_automaton | _widen(_drafted(neural), width)
    tokens = jnp.where(
        from_automaton, _widen(automaton_draft.tokens, width), _widen(neural.tokens, width)
    )
    return Draft(
        tokens=jnp.where(drafted, tokens, DRAFT_FILL),
        length=_prefix_length(drafted),
        match_length=jnp.where(use, automaton_draft.match_length, 0),
        match_end=jnp.where(use, automaton_draft.match_end, 0),
    )


def _drafted(draft: Draft) -> jax.Array:
    """bool[B, K] the positions that hold a drafted token."""
    position = jnp.arange(draft.tokens.shape[1], dtype=jnp.int32)[None]
    return position < draft.length[:, None]


def _prefix_length(confirmed: jax.Array) -> jax.Array:
    """int32[B] how many positions of bool[B, K] hold before the first that does not."""
    width = confirmed.shape[1]
    position = jnp.arange(width, dtype=jnp.int32)[None]
    return jnp.min(jnp.where(confirmed, width, position), axis=1, initial=width)


def _scores(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """float32[B, T, V] whose softmax is what tokens are drawn from; -inf for what never is."""
    temperature = _per_row(sampling.temperature)
    token = _vocabulary(logits)
    best = token == jnp.argmax(logits, axis=-1, keepdims=True).astype(jnp.int32)
    scores = logits.astype(jnp.float32)
    # The largest is 0 first, so that no temperature, however small, makes an infinity of it.
    scores -= jnp.max(scores, axis=-1, keepdims=True)
    scores = jnp.where(
        temperature > 0,
        scores / jnp.where(temperature > 0, temperature, 1.0),
        jnp.where(best, 0.0, -jnp.inf),
    )
    if sampling.top_k is None and sampling.top_p is None:
        return scores
    descending = -jnp.sort(-scores, axis=-1)
    kept = jnp.ones(descending.shape, bool)
    if sampling.top_k is not None:
        kept = token < _per_row(sampling.top_k)
    if sampling.top_p is not None:
        top_p = _per_row(sampling.top_p)
        probability = jax.nn.softmax(jnp.where(kept, descending, -jnp.inf), axis=-1)
        before = jnp.cumsum(probability, axis=-1) - probability
        kept &= (before < top_p) | (top_p >= 1.0)
    kept |= token == 0
    smallest = jnp.min(jnp.where(kept, descending, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(scores >= smallest, scores, -jnp.inf)


def _without(scores: jax.Array, refused: jax.Array) -> jax.Array:
    """The scores [B, V] of the residual distribution: p without the token refused int32[B, 1]."""
    return jnp.where(_vocabulary(scores)[0] == refused, -jnp.inf, scores)


def _vocabulary(logits: jax.Array) -> jax.Array:
    """int32[1, 1, V] every token."""
    return jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, None]


def _widen(values: jax.Array, width: int) -> jax.Array:
    return jnp.pad(values, ((0, 0), (0, width - values.shape[1])))


def _per_row(values: jax.Array) -> jax.Array:
    """One number, or one per row, as it broadcasts to [B, T, V]."""
    return jnp.reshape(values, (-1, 1, 1))


def check_sampling(sampling: Any, rows: int) -> Sampling:
    """The sampling with every number as an array, each of `rows` numbers or one for all."""
    if not isinstance(sampling, Sampling):
        raise TypeError(f"sampling: expected a jax_sa.Sampling, got {type(sampling).__name__}")
    temperature, top_k, top_p = sampling.temperature, sampling.top_k, sampling.top_p
    if isinstance(temperature, numbers.Real) and not 0 <= temperature < float("inf"):
        expected = "a finite number of at least 0"
        raise ValueError(f"temperature: expected {expected}, got {temperature!r}")
    if isinstance(top_k, numbers.Real):
        check_int("top_k", top_k, 1)
    if isinstance(top_p, numbers.Real) and not 0 < top_p <= 1:
        raise ValueError(f"top_p: expected a number in (0, 1], got {top_p!r}")

    def as_array(name: str, value: Any, dtype: Any) -> jax.Array:
        if isinstance(value, numbers.Real):
            return jnp.asarray(value, dtype)
        check_array(name, value, dtype, () if jnp.shape(value) == () else (rows,))
        return value

    return Sampling(
        sampling.key,
        as_array("temperature", temperature, jnp.float32),
        None if top_k is None else as_array("top_k", top_k, jnp.int32),
        None if top_p is None else as_array("top_p", top_p, jnp.float32),
    )


def _check_draft(name: str, draft: Any) -> tuple[int, int]:
    if not isinstance(draft, Draft):
        raise TypeError(f"{name}: expected a jax_sa.Draft, got {type(draft).__name__}")
    rows, max_draft = check_array(f"{name}.tokens", draft.tokens, jnp.int32, ("B", "K"))
    check_array(f"{name}.length", draft.length, jnp.int32, (rows,))
    return rows, max_draft


def _check_logits(name: str, logits: Any, rows: int, max_draft: int) -> jax.Array:
    is_float = hasattr(logits, "dtype") and jnp.issubdtype(logits.dtype, jnp.floating)
    dtype = logits.dtype if is_float else jnp.float32
    check_array(name, logits, dtype, (rows, 1 + max_draft, "V"))
    return logits


def _chosen_tokens(targets: Any, rows: int, max_draft: int) -> jax.Array:
    if not hasattr(targets, "dtype") or not jnp.issubdtype(targets.dtype, jnp.floating):
        check_array("targets", targets, jnp.int32, (rows, 1 + max_draft))
        return targets
    _check_logits("targets", targets, rows, max_draft)
    return jnp.argmax(targets, axis=-1).astype(jnp.int32)
