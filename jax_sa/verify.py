"""The drafted tokens that the model confirms, in plain jnp.

Letters: B rows, K draft tokens, V vocabulary, T places of packed logits.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jax_sa._checks import check_array, check_int
from jax_sa._explicit import follow_rows
from jax_sa.automaton import DRAFT_FILL, Draft, Source
from jax_sa.sampling import Sampling, check_sampling, distribution, draw, repeat, spread


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Accepted:
    """The tokens that a step emits, for B rows."""

    tokens: jax.Array
    """int32[B, 1 + K] the confirmed drafted tokens, then the model's own next token;
    `DRAFT_FILL` beyond `length`."""
    length: jax.Array
    """int32[B] emitted tokens, 1..1 + K."""


@follow_rows()
def accept_greedy(draft: Draft, targets: jax.Array, *, first: jax.Array | None = None) -> Accepted:
    """Keeps the longest prefix of each draft that greedy decoding would have written.

    The output of a loop that emits this is token for token that of greedy decoding (Leviathan et
    al. 2023, section 2, at temperature 0).

    Args:
      draft: B rows and K tokens; K may be 0.
      targets: the model's choice after the last token and after each drafted one: logits
        [B, 1 + K, V] of a floating dtype, whose largest is chosen (of a NaN, the first NaN), or the
        chosen tokens int32[B, 1 + K]. With `first`, packed: logits [T, V] or tokens int32[T].
      first: int32[B], of packed targets, in which the rows lie one after the other without
        padding: the place of a row's first. Place `first[b] + j` judges draft token j of row b, and
        place `first[b] + draft.length[b]` follows its whole draft. The caller keeps these within
        [0, T); others read some other place. None: the targets are not packed.

    Raises:
      ValueError, TypeError: at trace time, for a wrong shape or dtype.
    """
    rows, max_draft = _check_draft("draft", draft)
    chosen = check_targets(targets, rows, max_draft, first)
    if jnp.issubdtype(chosen.dtype, jnp.floating):
        chosen = jnp.argmax(chosen, axis=-1).astype(jnp.int32)
    if first is not None:
        chosen = chosen[places(first, max_draft, chosen.shape[0])]
    length = _prefix_length(_drafted(draft) & (draft.tokens == chosen[:, :-1]), start=1)
    emitted = jnp.arange(1 + max_draft, dtype=jnp.int32)[None] < length[:, None]
    return Accepted(tokens=jnp.where(emitted, chosen, DRAFT_FILL), length=length)


@follow_rows()
def accept_sampled(
    key: jax.Array,
    draft: Draft,
    logits: jax.Array,
    temperature: jax.Array | float = 1.0,
    top_k: jax.Array | int | None = None,
    top_p: jax.Array | float | None = None,
    *,
    first: jax.Array | None = None,
) -> Accepted:
    """Keeps a prefix of each draft such that what is emitted has the model's own distribution.

    Speculative sampling (Leviathan et al. 2023, algorithm 1; Chen et al. 2023, algorithm 2) for a
    draft without probabilities, so one that is certain of each token: the token x is confirmed
    with probability p(x); the first that is not is replaced by one drawn from p without x,
    renormalised. After a draft that is confirmed to its end, one more is drawn from p.

    Args:
      key: a PRNG key.
      draft: B rows and K tokens; K may be 0.
      logits: the model's, a floating dtype [B, 1 + K, V], after the last token and after each
        drafted one. With `first`, packed: [T, V].
      temperature: as in `Sampling`, like `top_k` and `top_p`. Where it is 0, the result is that of
        `accept_greedy`.
      top_k: None: all tokens.
      top_p: None: all tokens.
      first: int32[B], as in `accept_greedy`. The tokens drawn are those of the same logits
        unpacked.

    Raises:
      ValueError, TypeError: at trace time, naming the argument.
    """
    rows, max_draft = _check_draft("draft", draft)
    logits = check_logits("logits", logits, rows, max_draft, first)
    sampling = check_sampling(Sampling(key, temperature, top_k, top_p), rows)
    one_place = first is None and max_draft == 0  # for each row, in order
    if first is None:
        first = (1 + max_draft) * jnp.arange(rows, dtype=jnp.int32)
        logits = logits.reshape(-1, logits.shape[-1])
        of_places = repeat(sampling, rows, 1 + max_draft)
    else:
        of_places = spread(sampling, row_of_place(first, draft, logits.shape[0]))
    num_places, vocabulary = logits.shape
    place = places(first, max_draft, num_places)
    target = distribution(logits, of_places)
    chance, noise = draw(key, rows, max_draft, vocabulary)

    known = (draft.tokens >= 0) & (draft.tokens < vocabulary)
    token = jnp.clip(draft.tokens, 0, vocabulary - 1)
    judge = place[:, :-1]
    probability = target.at(judge).probability(logits[judge, token], token)
    length = _prefix_length(_drafted(draft) & known & (chance < probability), start=1)

    # The model's own token comes where a token was refused, or after the draft, where none was.
    position = jnp.arange(1 + max_draft, dtype=jnp.int32)[None]
    last = length[:, None] - 1
    tokens = _widen(draft.tokens, 1 + max_draft)
    tried = jnp.where(_widen(_drafted(draft), 1 + max_draft), tokens, -1)
    refused = jnp.take_along_axis(tried, last, axis=1)
    if not one_place:
        here = jnp.take_along_axis(place, last, axis=1)[:, 0]
        target, logits = target.at(here), logits[here]
    scores = target.scores(logits)
    own = jnp.argmax(_without(scores, refused) + noise, axis=-1).astype(jnp.int32)
    tokens = jnp.where(position == last, own[:, None], tokens)
    return Accepted(tokens=jnp.where(position < length[:, None], tokens, DRAFT_FILL), length=length)


@follow_rows()
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
      A draft of B rows and max(K, M) tokens. `match_length`, `match_end` and `source` are the
      automaton's where its draft is used; elsewhere 0, 0 and `Source.NEURAL`.

    Raises:
      ValueError, TypeError: at trace time, for a wrong shape or dtype or a threshold below 1.
    """
    threshold = check_int("threshold", threshold, 1)
    rows, max_draft = _check_draft("automaton_draft", automaton_draft)
    neural, neural_width = _neural_draft(neural_draft, rows)

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
    source = jnp.where(neural.length > 0, jnp.int32(Source.NEURAL), jnp.int32(Source.NONE))
    return Draft(
        tokens=jnp.where(drafted, tokens, DRAFT_FILL),
        length=_prefix_length(drafted),
        match_length=jnp.where(use, automaton_draft.match_length, 0),
        match_end=jnp.where(use, automaton_draft.match_end, 0),
        source=jnp.where(use, automaton_draft.source, source),
    )


@follow_rows()
def join_drafts(neural_draft: Draft | jax.Array, following: Draft) -> Draft:
    """Neural drafts, and behind their tokens what is expected to follow these.

    A neural drafter foretells few tokens. What `lookup_after` finds once they are added to the text
    goes on where they end:

        following = jax_sa.lookup_after(state, neural, lengths, max_draft=K)
        draft = jax_sa.join_drafts(neural, following)

    Args:
      neural_draft: B rows and M tokens, a `Draft` or int32[B, M], all of them drafted.
      following: B rows and K tokens. Where the neural draft has no token, nothing follows it.

    Returns:
      A draft of B rows and M + K tokens, which counts as a neural one as far as it is long:
      `match_length`, `match_end` and `source` are those of the neural draft.

    Raises:
      ValueError, TypeError: at trace time, for a wrong shape or dtype.
    """
    rows, max_draft = _check_draft("following", following)
    neural, neural_width = _neural_draft(neural_draft, rows)
    length = neural.length + jnp.where(neural.length > 0, following.length, 0)
    position = jnp.arange(neural_width + max_draft, dtype=jnp.int32)[None]
    behind = jnp.clip(position - neural.length[:, None], 0, max(max_draft - 1, 0))
    behind = jnp.take_along_axis(_widen(following.tokens, max(max_draft, 1)), behind, axis=1)
    is_neural = _widen(_drafted(neural), position.size)
    tokens = jnp.where(is_neural, _widen(neural.tokens, position.size), behind)
    tokens = jnp.where(position < length[:, None], tokens, DRAFT_FILL)
    return dataclasses.replace(neural, tokens=tokens, length=length)


def _neural_draft(neural: Any, rows: int) -> tuple[Draft, int]:
    """A neural draft of so many rows as a `Draft`, and M; ValueError or TypeError otherwise."""
    if not isinstance(neural, Draft):
        _, width = check_array("neural_draft", neural, jnp.int32, (rows, "M"))
        neural = Draft(neural, jnp.full(rows, width, jnp.int32))
    neural_rows, width = _check_draft("neural_draft", neural)
    if neural_rows != rows:
        raise ValueError(f"neural_draft: expected {rows} rows, got {neural_rows}")
    return neural, width


def _drafted(draft: Draft) -> jax.Array:
    """bool[B, K] the positions that hold a drafted token."""
    position = jnp.arange(draft.tokens.shape[1], dtype=jnp.int32)[None]
    return position < draft.length[:, None]


@follow_rows((True, True))
def cut_at_stop(
    accepted: Accepted, emits: jax.Array, stop_tokens: tuple[int, ...]
) -> tuple[Accepted, jax.Array]:
    """The tokens up to the first stop token, and bool[B] where there is one.

    Args:
      accepted: B rows.
      emits: bool[B]; the other rows emit nothing, and do not stop.
      stop_tokens: token ids.
    """
    position = jnp.arange(accepted.tokens.shape[1], dtype=jnp.int32)[None]
    ids = jnp.asarray(stop_tokens, jnp.int32)
    stops = jnp.any(accepted.tokens[..., None] == ids[None, None], axis=-1)
    stops &= (position < accepted.length[:, None]) & emits[:, None]
    length = jnp.min(jnp.where(stops, 1 + position, accepted.length[:, None]), axis=1)
    length = jnp.where(emits, length, 0)
    tokens = jnp.where(position < length[:, None], accepted.tokens, DRAFT_FILL)
    return Accepted(tokens, length), jnp.any(stops, axis=1)


@follow_rows()
def last_token(emitted: Accepted, before: jax.Array) -> jax.Array:
    """int32[B] the last emitted token; int32[B] `before` where nothing was emitted."""
    index = jnp.maximum(emitted.length - 1, 0)[:, None]
    token = jnp.take_along_axis(emitted.tokens, index, axis=1)[:, 0]
    return jnp.where(emitted.length > 0, token, before)


def _prefix_length(confirmed: jax.Array, *, start: int = 0) -> jax.Array:
    """int32[B] `start`, and the positions of bool[B, K] before the first that does not hold."""
    most = start + confirmed.shape[1]
    position = jnp.arange(start, most, dtype=jnp.int32)[None]
    return jnp.min(jnp.where(confirmed, most, position), axis=1, initial=most)


def places(first: jax.Array, max_draft: int, num_places: int) -> jax.Array:
    """int32[B, 1 + K] where the logits of each row lie among the packed ones, kept in bounds."""
    position = jnp.arange(1 + max_draft, dtype=jnp.int32)[None]
    return jnp.clip(first[:, None] + position, 0, num_places - 1)


def row_of_place(first: jax.Array, draft: Any, num_places: int) -> jax.Array:
    """int32[T] the row that each place belongs to; 0 for padding.

    A row that takes no place, such as an idle one, begins where the next row does: of those that
    begin at a place the last one has it. A maximum says so; a plain scatter would leave it to the
    order in which a GPU writes.
    """
    rows, max_draft = draft.tokens.shape
    position = jnp.arange(1 + max_draft, dtype=jnp.int32)[None]
    place = first[:, None] + position
    place = jnp.where((position <= draft.length[:, None]) & (place >= 0), place, num_places)
    row = jnp.broadcast_to(jnp.arange(rows, dtype=jnp.int32)[:, None], place.shape)
    return jnp.zeros(num_places, jnp.int32).at[place].max(row, mode="drop")


def _without(scores: jax.Array, refused: jax.Array) -> jax.Array:
    """The scores [B, V] of the residual distribution: p without the token refused int32[B, 1]."""
    tokens = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    return jnp.where(tokens == refused, -jnp.inf, scores)


def _widen(values: jax.Array, width: int) -> jax.Array:
    return jnp.pad(values, ((0, 0), (0, width - values.shape[1])))


def _check_draft(name: str, draft: Any) -> tuple[int, int]:
    if not isinstance(draft, Draft):
        raise TypeError(f"{name}: expected a jax_sa.Draft, got {type(draft).__name__}")
    rows, max_draft = check_array(f"{name}.tokens", draft.tokens, jnp.int32, ("B", "K"))
    check_array(f"{name}.length", draft.length, jnp.int32, (rows,))
    return rows, max_draft


def check_targets(targets: Any, rows: int, max_draft: int, first: Any) -> jax.Array:
    """Tokens or logits of 1 + K places a row, or packed; ValueError or TypeError otherwise."""
    if hasattr(targets, "dtype") and jnp.issubdtype(targets.dtype, jnp.floating):
        return check_logits("targets", targets, rows, max_draft, first)
    shape = check_array("targets", targets, jnp.int32, _check_first(first, rows, max_draft))
    _check_not_empty("targets", shape, rows)
    return jnp.asarray(targets)


def check_logits(name: str, logits: Any, rows: int, max_draft: int, first: Any) -> jax.Array:
    """Logits of 1 + K places a row, or packed; ValueError or TypeError otherwise."""
    is_float = hasattr(logits, "dtype") and jnp.issubdtype(logits.dtype, jnp.floating)
    dtype = logits.dtype if is_float else jnp.float32
    shape = check_array(name, logits, dtype, (*_check_first(first, rows, max_draft), "V"))
    _check_not_empty(name, shape, rows)
    return jnp.asarray(logits)


def _check_first(first: Any, rows: int, max_draft: int) -> tuple[int | str, ...]:
    """The axes of the places of targets, packed or not."""
    if first is None:
        return rows, 1 + max_draft
    check_array("first", first, jnp.int32, (rows,))
    return ("T",)


def _check_not_empty(name: str, shape: tuple[int, ...], rows: int) -> None:
    if rows and 0 in shape:
        raise ValueError(f"{name}: expected one place and one token at least, got {list(shape)}")
