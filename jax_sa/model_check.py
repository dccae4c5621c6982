"""Whether a model does what `jax_sa.Decoder` asks of one: it is called, and its logits compared.

Letters: B rows, C capacity of a row, T tokens of a block, N tokens of a probe's text, V vocabulary.

What is compared with is the model itself, reading one token at a time, as plain decoding does. Each
clause of the contract has a probe that breaks nothing else, so that what fails says what is wrong.
"""

import dataclasses
import functools
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_sa._checks import check_int, check_positive_float
from jax_sa.model_contract import (
    check_cache,
    check_logits_of_block,
    check_params,
    check_returned_cache,
)

TEXT = 12
"""N of a short text."""

BLOCK = 4
"""T of a block."""

MIN_CAPACITY = 16
"""C at least, so that short texts and what is refused fit."""

SPECIAL_TOKENS = (0, 1, 2, 3)
"""Ids that models often use for padding and for the beginning and end of a text."""

TOLERANCE = 0.05
"""By how much logits may differ, as a share of the change that another token before makes."""

OK, BROKEN, NOTE, SKIPPED = "ok", "broken", "note", "not checked"


class Broken(Exception):
    """A probe's finding: what is wrong, and what to do."""


@dataclasses.dataclass(frozen=True)
class Clause:
    """A clause of the contract, and whether a model keeps it."""

    name: str
    """In one word."""
    promise: str
    """What the contract asks for."""
    outcome: str
    """"ok", "broken", "not checked" or, for what only matters in loops of one's own, "note"."""
    finding: str
    """What is wrong and what to do, or why it was not checked; else empty."""


@dataclasses.dataclass(frozen=True)
class ModelCheck:
    """What `check_model` found; printed, a table."""

    clauses: tuple[Clause, ...]
    """In the order in which they were checked."""

    @property
    def ok(self) -> bool:
        """Whether no clause is broken."""
        return not self.broken

    @property
    def broken(self) -> tuple[Clause, ...]:
        """The clauses that are broken."""
        return tuple(clause for clause in self.clauses if clause.outcome == BROKEN)

    def __str__(self) -> str:
        """A line for each clause, and below it what was found."""
        lines = []
        for clause in self.clauses:
            lines.append(f"{clause.name:<8}{clause.outcome:<13}{clause.promise}")
            indent = " " * 8
            lines += textwrap.wrap(
                clause.finding, 80, initial_indent=indent, subsequent_indent=indent
            )
        return "\n".join(lines)


def check_model(
    model: Callable[..., tuple[jax.Array, Any]],
    params: Any,
    init_cache: Callable[[int, int], Any],
    *,
    rows: int = 2,
    capacity: int = 64,
    vocabulary: int | None = None,
    special_tokens: Sequence[int] = SPECIAL_TOKENS,
    tolerance: float = TOLERANCE,
) -> ModelCheck:
    """Calls a model with a few small blocks, and says which clause of the contract it breaks.

        report = jax_sa.check_model(model, params, init_cache)
        print(report)
        assert report.ok

    It tells a wrong logit from rounding by how much the logits change with an earlier token, so
    random parameters will do where that is more than rounding. It takes the time to compile ten
    small programs, and to decode some `4 * capacity` tokens of each row one by one.

    Args:
      model: as `jax_sa.Decoder` describes it.
      params: its parameters.
      init_cache: `init_cache(rows, capacity)` makes an empty cache.
      rows: B, at least 2.
      capacity: C, at least 16. A cache that forgets old entries, such as one of a sliding window,
        shows only where C is larger than what it remembers.
      vocabulary: V, of which texts are made. None: as many as there are logits.
      special_tokens: ids that the model might take for padding or the end of a text.
      tolerance: by how much logits may differ, as a share of the change that another token before
        makes; never less than what rounding to the dtypes of parameters, cache and logits allows.

    Raises:
      ValueError, TypeError: naming the argument. What the model does wrong is no error.
    """
    rows = check_int("rows", rows, 2)
    capacity = check_int("capacity", capacity, MIN_CAPACITY)
    if not callable(model) or not callable(init_cache):
        raise TypeError("model, init_cache: expected functions")
    check_params(params)
    special_tokens = tuple(check_int("special_tokens", token, 0) for token in special_tokens)
    make = functools.partial(init_cache, rows, capacity)
    tolerance = check_positive_float("tolerance", tolerance)
    return _check(
        _Probed(model, params, make, rows, capacity, vocabulary, special_tokens, tolerance)
    )


def check_on_copies(model: Any, params: Any, cache: Any, room: int) -> None:
    """Raises ValueError unless a model passes, on copies of a cache with `room` tokens a row."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((params, cache))):
        raise ValueError("check: expected arrays, got tracers: check the model outside of jit")
    room = check_int("check: prompt and new tokens", room, MIN_CAPACITY)

    def empty() -> Any:
        return dataclasses.replace(cache, length=jnp.zeros_like(cache.length))

    (rows,) = cache.length.shape
    report = _check(_Probed(model, params, empty, rows, room))
    if not report.ok:
        raise ValueError(f"model: expected one that keeps the contract of jax_sa.Decoder\n{report}")


class _Probed:
    """A model that is probed: its texts, the logits it gives, and what counts as a difference."""

    def __init__(
        self,
        model: Any,
        params: Any,
        make_cache: Callable[[], Any],
        rows: int,
        capacity: int,
        vocabulary: int | None = None,
        special_tokens: tuple[int, ...] = SPECIAL_TOKENS,
        share: float = TOLERANCE,
    ):
        self.model, self.params, self.make_cache = model, params, make_cache
        self.rows, self.capacity, self.vocabulary = rows, capacity, vocabulary
        self.special_tokens = special_tokens
        self.share, self.tolerance = share, 0.0
        self._read = jax.jit(self._read_block)
        self._read_each = jax.jit(self._read_tokens)

    def _read_block(
        self, params: Any, tokens: jax.Array, start: jax.Array, cache: Any
    ) -> tuple[jax.Array, Any, Any]:
        given = dataclasses.replace(cache, length=start)
        logits, returned = self.model(params, tokens, given)
        kept = dataclasses.replace(returned, length=start)
        return logits.astype(jnp.float32), kept, returned.length

    def _read_tokens(
        self, params: Any, tokens: jax.Array, positions: jax.Array, cache: Any
    ) -> tuple[jax.Array, Any]:
        def step(cache: Any, place: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
            token, position = place
            logits, cache, _ = self._read_block(params, token[:, None], position, cache)
            return cache, logits[:, 0]

        cache, logits = jax.lax.scan(step, cache, (tokens.T, positions.T))
        return jnp.swapaxes(logits, 0, 1), cache

    def read(self, tokens: np.ndarray, start: int, cache: Any) -> tuple[np.ndarray, Any]:
        """Logits [B, T, V] of a block at one position in all rows, and the cache."""
        starts = jnp.full(self.rows, start, jnp.int32)
        logits, cache, _ = self._read(self.params, jnp.asarray(tokens), starts, cache)
        return np.asarray(logits), cache

    def read_each(self, tokens: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, Any]:
        """Logits [B, N, V] of tokens that are read one by one, at int32[B, N] positions."""
        positions = np.broadcast_to(positions, tokens.shape).astype(np.int32)
        given = self.params, jnp.asarray(tokens), jnp.asarray(positions), self.make_cache()
        logits, cache = self._read_each(*given)
        return np.asarray(logits), cache

    def after(self, text: np.ndarray, count: int) -> Any:
        """The cache of the first `count` tokens of a text, read one by one."""
        if count == 0:
            return self.make_cache()
        return self.read_each(text[:, :count], np.arange(count)[None])[1]

    @property
    def first(self) -> int:
        """The first token that plain texts are made of; they hold no special one if V allows."""
        first = max(self.special_tokens, default=-1) + 1
        return first if first + 4 <= self.vocabulary else 0

    def text(self, count: int, seed: int = 0, *, special: bool = False) -> np.ndarray:
        """int32[B, N] random tokens; every third is special, or none."""
        random = np.random.default_rng(seed)
        text = random.integers(self.first, self.vocabulary, (self.rows, count)).astype(np.int32)
        known = [token for token in self.special_tokens if token < self.vocabulary]
        if special and known:
            text[:, 1::3] = random.choice(known, text[:, 1::3].shape)
        return text

    def another(self, tokens: np.ndarray) -> np.ndarray:
        """Other tokens than these of a plain text, each of them."""
        count = self.vocabulary - self.first
        return self.first + (tokens - self.first + 1 + count // 3) % count

    @functools.cached_property
    def truth(self) -> np.ndarray:
        """Logits of `text(TEXT)`."""
        return self.read_each(self.text(TEXT), np.arange(TEXT)[None])[0]

    @functools.cached_property
    def long_truth(self) -> np.ndarray:
        """Logits of `text(capacity)`."""
        return self.read_each(self.text(self.capacity), np.arange(self.capacity)[None])[0]

    def differ(self, got: np.ndarray, expected: np.ndarray) -> bool:
        """Whether logits differ by more than rounding."""
        return bool((_apart(got, expected) > self.tolerance).any())


def _apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[...] the largest difference of logits [..., V]; inf where just one of two is NaN or inf."""
    with np.errstate(invalid="ignore"):
        difference = np.where(one == other, 0.0, np.abs(one - other))
    return np.nan_to_num(difference, nan=np.inf, posinf=np.inf).max(axis=-1)


def _check_shapes(probed: _Probed) -> None:
    cache = probed.make_cache()
    try:
        check_cache(cache, probed.rows)
        for width in (1, BLOCK):
            tokens = jax.ShapeDtypeStruct((probed.rows, width), jnp.int32)
            logits, returned = jax.eval_shape(probed.model, probed.params, tokens, cache)
            check_logits_of_block(logits, tokens)
            check_returned_cache(returned, cache)
    except (TypeError, ValueError) as error:
        raise Broken(str(error)) from error
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise Broken(f"logits: expected a floating dtype, got {logits.dtype}.")
    if probed.vocabulary is None:
        probed.vocabulary = logits.shape[-1]


def _check_memory(probed: _Probed) -> None:
    """Sets what later probes take for a difference, too."""
    if np.isnan(probed.truth).any():
        raise Broken("The logits hold NaN: often a softmax over nothing, where a mask is empty.")
    text = probed.text(TEXT)
    changes = []
    for place in range(2, TEXT - 1, 2):
        altered = text.copy()
        altered[:, place] = probed.another(text[:, place])
        logits, _ = probed.read_each(altered, np.arange(TEXT)[None])
        changes.append(_apart(logits, probed.truth)[:, place + 1])
    changes = np.concatenate(changes)
    floating = [
        leaf.dtype
        for leaf in jax.tree.leaves((probed.params, probed.make_cache(), probed.truth))
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    rounding = max(float(jnp.finfo(dtype).eps) for dtype in floating)
    if jax.default_backend() != "cpu":  # products of float32 are rounded to 10 bits there
        rounding = max(rounding, 2.0**-11)
    finite = probed.truth[np.isfinite(probed.truth)]
    rounding *= 4 * float(np.abs(finite).max(initial=0.0))
    if not (changes > rounding).any():
        raise Broken(
            "A token read alone does not see the one before it: its logits stay the same when that "
            "is another. Store each token's keys and values at cache.length[b], attend to all "
            "positions up to that (a mask of shape [B, T, C], not [T, T]), and return the cache. "
            "If the model is right, its parameters say too little: try float32, or trained ones."
        )
    signal = float(np.median(changes[changes > rounding]))
    probed.tolerance = max(probed.share * signal, rounding)


def _check_offset(probed: _Probed) -> None:
    text, start = probed.text(TEXT), TEXT // 2
    altered = text.copy()
    altered[:, 1:start] = probed.another(text[:, 1:start])
    logits = []
    for before in (text, altered):
        block = text[:, start : start + BLOCK]
        logits.append(probed.read(block, start, probed.after(before, start))[0])
    if not probed.differ(*logits):
        raise Broken(
            "A block of several tokens does not see the tokens before it: the model takes T > 1 "
            "for a prompt that begins a text. Every block goes on at cache.length[b]: "
            "do not choose prefill or decoding by T."
        )


def _check_order(probed: _Probed) -> None:
    text = probed.text(TEXT)
    altered = text.copy()
    for start in (0, TEXT // 2):
        last = start + BLOCK - 1
        altered[:, last] = probed.another(text[:, last])
        logits = []
        for tokens in (text, altered):
            block = tokens[:, start : start + BLOCK]
            logits.append(probed.read(block, start, probed.after(text, start))[0][:, :-1])
        if probed.differ(*logits):
            raise Broken(
                f"In a block at position {start}, a token sees one that comes after it. The mask "
                "of token t must end at position cache.length[b] + t: "
                "jnp.arange(C) <= positions[..., None]."
            )


def _check_width(probed: _Probed) -> None:
    if _blocks_differ(probed, probed.text(TEXT), probed.truth):
        raise Broken(
            "The logits of a token depend on T, the width of the block it is read in. Read it at "
            "position cache.length[b] + t whatever T is, and let nothing else depend on T: neither "
            "positions, nor the room of experts, nor a cut to the last tokens."
        )


def _check_special(probed: _Probed) -> None:
    text = probed.text(TEXT, seed=1, special=True)
    expected, _ = probed.read_each(text, np.arange(TEXT)[None])
    if _blocks_differ(probed, text, expected):
        raise Broken(
            f"A block with one of the tokens {list(probed.special_tokens)} gives other logits than "
            "its tokens alone: the model takes one for padding, and masks it or does not count it. "
            "A model may write any token: make masks and positions from cache.length alone."
        )


def _blocks_differ(probed: _Probed, text: np.ndarray, expected: np.ndarray) -> bool:
    """Whether one block of all tokens, or several blocks of few, give other logits."""
    whole, _ = probed.read(text, 0, probed.make_cache())
    parts, cache = [], probed.make_cache()
    for start in range(0, TEXT, BLOCK):
        logits, cache = probed.read(text[:, start : start + BLOCK], start, cache)
        parts.append(logits)
    return probed.differ(whole, expected) or probed.differ(np.concatenate(parts, 1), expected)


def _check_refused(probed: _Probed) -> None:
    text, half, wrong = probed.text(TEXT), TEXT // 2, 3
    refused = probed.another(text[:, half : half + wrong])
    tokens = np.concatenate([text[:, :half], refused, text[:, half:]], axis=1)
    positions = [*range(half), *range(half, half + wrong), *range(half, TEXT)]
    logits, _ = probed.read_each(tokens, np.asarray(positions)[None])
    if probed.differ(logits[:, half + wrong :], probed.truth[:, half:]):
        raise Broken(
            "Refused tokens are not forgotten: after cache.length was set back, the logits are "
            "others than without them. Take positions and the place to write from cache.length, "
            "not from a count of the model's own, and mask what lies beyond."
        )


def _check_rows(probed: _Probed) -> None:
    text = probed.text(TEXT)
    delay = np.arange(probed.rows)[:, None] % BLOCK
    positions = np.maximum(np.arange(TEXT + BLOCK - 1)[None] - delay, 0)
    positions = np.minimum(positions, TEXT - 1)
    logits, _ = probed.read_each(np.take_along_axis(text, positions, 1), positions)
    if probed.differ(logits, np.take_along_axis(probed.truth, positions[..., None], 1)):
        raise Broken(
            "Rows that stand at different positions get wrong logits: the model uses one index for "
            "all rows. Write and mask each row at its own cache.length[b], or let "
            'jax_sa.from_forward(..., index="batch") do so by vmap over rows.'
        )


def _check_alone(probed: _Probed) -> None:
    text = probed.text(TEXT)
    altered = text.copy()
    altered[1:] = probed.another(text[1:])
    alone, _ = probed.read_each(altered, np.arange(TEXT)[None])
    block = [probed.read(tokens, 0, probed.make_cache())[0][:1] for tokens in (text, altered)]
    if probed.differ(alone[:1], probed.truth[:1]) or probed.differ(*block):
        raise Broken(
            "The logits of a row depend on the tokens of other rows. Nothing may be shared between "
            "rows: neither attention, nor the room of experts, nor statistics of the batch."
        )


def _check_late(probed: _Probed) -> None:
    text, wrong = probed.text(probed.capacity), BLOCK - 1
    late = probed.capacity - BLOCK
    refused = probed.another(text[:, late : late + wrong])
    tokens = np.concatenate([text[:, :late], refused, text[:, late:]], axis=1)
    positions = [*range(late), *range(late, late + wrong), *range(late, probed.capacity)]
    logits, _ = probed.read_each(tokens, np.asarray(positions)[None])
    if probed.differ(logits[:, late + wrong :], probed.long_truth[:, late:]):
        raise Broken(
            "Late in a text, refused tokens have overwritten older ones that are still wanted, as "
            "in a ring of the size of a sliding window. Keep a window in a cache of full length, "
            "masked, or in a ring that is larger than the window by the widest block."
        )


def _check_room(probed: _Probed) -> None:
    text, late = probed.text(probed.capacity), probed.capacity - BLOCK
    logits, _ = probed.read(text[:, late:], late, probed.after(text, late))
    if probed.differ(logits, probed.long_truth[:, late:]):
        raise Broken(
            "A block that ends at the last position of the cache gets wrong logits, so the cache "
            "has room for fewer tokens than it was made for. Make it larger, or write to its end."
        )


def _note_beyond(probed: _Probed) -> None:
    text, late = probed.text(probed.capacity), probed.capacity - BLOCK // 2
    beyond = np.concatenate([text[:, late:], text[:, : BLOCK // 2]], axis=1)
    _, cache = probed.read(beyond, late, probed.after(text, late))
    logits, _ = probed.read(text[:, late : late + 1], late, cache)
    if probed.differ(logits, probed.long_truth[:, late : late + 1]):
        raise Broken(
            "What is written beyond the capacity moves back over older tokens, or wraps around. "
            "jax_sa.Decoder never writes there; a loop of your own must not either."
        )


def _note_length(probed: _Probed) -> None:
    start = jnp.full(probed.rows, 2, jnp.int32)
    tokens = jnp.asarray(probed.text(BLOCK))
    _, _, length = probed._read(probed.params, tokens, start, probed.make_cache())
    if not np.array_equal(length, start):
        raise Broken("The model advances cache.length itself. jax_sa.Decoder ignores that.")


@dataclasses.dataclass(frozen=True)
class _Probe:
    """How a clause is checked."""

    name: str
    promise: str
    run: Callable[[_Probed], None]
    needs: tuple[str, ...] = ()
    """Clauses without which it would fail, too."""
    min_rows: int = 1
    required: bool = True


_PROBES = (
    _Probe("shapes", "logits [B, T, V] and the cache as it was given", _check_shapes),
    _Probe("memory", "a token sees the tokens before it", _check_memory, ("shapes",)),
    _Probe("offset", "a block sees the tokens before it", _check_offset, ("memory",)),
    _Probe("order", "a token sees none after it", _check_order, ("memory", "offset")),
    _Probe("width", "logits do not depend on T", _check_width, ("offset", "order")),
    _Probe("special", "no token is taken for padding", _check_special, ("width",)),
    _Probe("refused", "what was refused is overwritten", _check_refused, ("memory",)),
    _Probe("alone", "rows do not see each other", _check_alone, ("memory",), min_rows=2),
    _Probe("rows", "each row has its own position", _check_rows, ("refused", "alone"), min_rows=2),
    _Probe("late", "older tokens stay", _check_late, ("refused",)),
    _Probe("room", "a cache holds as many tokens as it says", _check_room, ("width", "late")),
    _Probe("beyond", "writes beyond the capacity are dropped", _note_beyond, ("room",), 1, False),
    _Probe("length", "cache.length stays as it is", _note_length, ("memory",), 1, False),
)


def _check(probed: _Probed) -> ModelCheck:
    clauses: dict[str, Clause] = {}
    for probe in _PROBES:
        outcome, finding = OK, ""
        missing = [name for name in probe.needs if clauses[name].outcome != OK]
        if missing:
            outcome, finding = SKIPPED, f"It needs {' and '.join(missing)}."
        elif probed.rows < probe.min_rows:
            outcome, finding = SKIPPED, "There is one row."
        else:
            try:
                probe.run(probed)
            except Broken as error:
                outcome, finding = BROKEN if probe.required else NOTE, str(error)
        clauses[probe.name] = Clause(probe.name, probe.promise, outcome, finding)
    return ModelCheck(tuple(clauses.values()))
