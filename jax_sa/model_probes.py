"""The probes of a model: for each clause of the contract one that fails where it is broken.

Letters: B rows, C capacity of a row, T tokens of a block, N tokens of a probe's text, V vocabulary.

What is compared with is the model itself, reading one token at a time, as plain decoding does. Each
probe breaks nothing but its clause, so that what fails says what is wrong. A packed model is probed
as `jax_sa.packed_probes` makes one of blocks [B, T] of it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_sa.draft_tree import ROOT, DraftTree
from jax_sa.model_contract import check_cache, check_logits_of_block, check_returned_cache
from jax_sa.tree_block import tree_block

TEXT = 12
"""N of a short text."""

BLOCK = 4
"""T of a block."""

SPECIAL_TOKENS = (0, 1, 2, 3)
"""Ids that models often use for padding and for the beginning and end of a text."""

TOLERANCE = 0.05
"""By how much logits may differ, as a share of the change that another token before makes."""


class Broken(Exception):
    """A probe's finding: what is wrong, and what to do."""


@dataclasses.dataclass(frozen=True)
class Words:
    """How findings call what a model is given."""

    decoder: str
    place: str
    """Where token t stands."""
    source: str
    """What a model must make masks and positions of."""
    own_position: str
    """How each row gets its own."""


OF_BLOCKS = Words(
    "jax_sa.Decoder",
    "cache.length[b] + t",
    "cache.length",
    "Write and mask each row at its own cache.length[b], or let "
    'jax_sa.from_forward(..., index="batch") do so by vmap over rows.',
)


class Probed:
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
        words: Words = OF_BLOCKS,
    ):
        self.model: Any = model
        self.params: Any = params
        self.make_cache: Callable[[], Any] = make_cache
        self.rows: int = rows
        self.capacity: int = capacity
        self.vocabulary: int | None = vocabulary
        self.special_tokens: tuple[int, ...] = special_tokens
        self.share: float = share
        self.words: Words = words
        self.tolerance: float = 0.0
        self._read: Any = jax.jit(self._read_block)
        self._read_each: Any = jax.jit(self._read_tokens)

    def _read_block(
        self, params: Any, tokens: jax.Array, start: jax.Array, cache: Any, *tree: Any
    ) -> tuple[jax.Array, Any, Any]:
        given = dataclasses.replace(cache, length=start)
        logits, returned = self.model(params, tokens, given, *tree)
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

    def take_vocabulary(self, logits: jax.ShapeDtypeStruct) -> None:
        """Takes V from logits [..., V], unless it is known; Broken if they are no real numbers."""
        if not jnp.issubdtype(logits.dtype, jnp.floating):
            raise Broken(f"logits: expected a floating dtype, got {logits.dtype}.")
        if self.vocabulary is None:
            self.vocabulary = logits.shape[-1]

    def read(self, tokens: np.ndarray, start: int, cache: Any) -> tuple[np.ndarray, Any]:
        """Logits [B, T, V] of a block at one position in all rows, and the cache."""
        starts = jnp.full(self.rows, start, jnp.int32)
        logits, cache, _ = self._read(self.params, jnp.asarray(tokens), starts, cache)
        return np.asarray(logits), cache

    def read_tree(self, last: np.ndarray, tree: DraftTree, start: int) -> tuple[np.ndarray, Any]:
        """Logits [B, 1 + N, V] of a token and a tree after `start` tokens of a text; the cache."""
        starts = jnp.full(self.rows, start, jnp.int32)
        tokens = jnp.concatenate([jnp.asarray(last), tree.tokens], axis=1)
        block = tree_block(tree, starts, jnp.zeros_like(starts))
        cache = self.after(self.text(TEXT), start)
        try:
            logits, cache, _ = self._read(self.params, tokens, starts, cache, block)
        except TypeError as error:
            raise Broken(
                f"The model does not take a tree as its last argument: {error}."
            ) from error
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


def check_shapes(probed: Probed) -> None:
    """Probes the clause `shapes`."""
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
    probed.take_vocabulary(logits)


def check_memory(probed: Probed) -> None:
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
            f"is another. Store each token's keys and values at {probed.words.place}, attend to "
            "all positions up to that (a mask over the C of the cache, not over the T of the "
            "block), and return the cache. "
            "If the model is right, its parameters say too little: try float32, or trained ones."
        )
    signal = float(np.median(changes[changes > rounding]))
    probed.tolerance = max(probed.share * signal, rounding)


def check_offset(probed: Probed) -> None:
    """Probes the clause `offset`."""
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
            f"for a prompt that begins a text. Token t of every block stands at "
            f"{probed.words.place}: do not choose prefill or decoding by T."
        )


def check_order(probed: Probed) -> None:
    """Probes the clause `order`."""
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
                f"of token t must end at position {probed.words.place}: "
                "jnp.arange(C) <= positions[..., None]."
            )


def check_width(probed: Probed) -> None:
    """Probes the clause `width`."""
    if _blocks_differ(probed, probed.text(TEXT), probed.truth):
        raise Broken(
            "The logits of a token depend on T, the width of the block it is read in. Read it at "
            f"position {probed.words.place} whatever T is, and let nothing else depend on T: "
            "neither positions, nor the room of experts, nor a cut to the last tokens."
        )


def check_special(probed: Probed) -> None:
    """Probes the clause `special`."""
    text = probed.text(TEXT, seed=1, special=True)
    expected, _ = probed.read_each(text, np.arange(TEXT)[None])
    if _blocks_differ(probed, text, expected):
        raise Broken(
            f"A block with one of the tokens {list(probed.special_tokens)} gives other logits than "
            "its tokens alone: the model takes one for padding, and masks it or does not count it. "
            f"A model may write any token: make masks and positions from {probed.words.source} "
            "alone."
        )


def _blocks_differ(probed: Probed, text: np.ndarray, expected: np.ndarray) -> bool:
    """Whether one block of all tokens, or several blocks of few, give other logits."""
    whole, _ = probed.read(text, 0, probed.make_cache())
    parts, cache = [], probed.make_cache()
    for start in range(0, TEXT, BLOCK):
        logits, cache = probed.read(text[:, start : start + BLOCK], start, cache)
        parts.append(logits)
    return probed.differ(whole, expected) or probed.differ(np.concatenate(parts, 1), expected)


def check_refused(probed: Probed) -> None:
    """Probes the clause `refused`."""
    text, half, wrong = probed.text(TEXT), TEXT // 2, 3
    refused = probed.another(text[:, half : half + wrong])
    tokens = np.concatenate([text[:, :half], refused, text[:, half:]], axis=1)
    positions = [*range(half), *range(half, half + wrong), *range(half, TEXT)]
    logits, _ = probed.read_each(tokens, np.asarray(positions)[None])
    if probed.differ(logits[:, half + wrong :], probed.truth[:, half:]):
        raise Broken(
            "Refused tokens are not forgotten: after the row went back to the first of them, the "
            "logits are others than without them. Take positions and the place to write from "
            f"{probed.words.source}, not from a count of the model's own, and mask what lies "
            "beyond."
        )


def check_rows(probed: Probed) -> None:
    """Probes the clause `rows`."""
    text = probed.text(TEXT)
    delay = np.arange(probed.rows)[:, None] % BLOCK
    positions = np.maximum(np.arange(TEXT + BLOCK - 1)[None] - delay, 0)
    positions = np.minimum(positions, TEXT - 1)
    logits, _ = probed.read_each(np.take_along_axis(text, positions, 1), positions)
    if probed.differ(logits, np.take_along_axis(probed.truth, positions[..., None], 1)):
        raise Broken(
            "Rows that stand at different positions get wrong logits: the model uses one index for "
            f"all rows. {probed.words.own_position}"
        )


def check_alone(probed: Probed) -> None:
    """Probes the clause `alone`."""
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


def check_late(probed: Probed) -> None:
    """Probes the clause `late`."""
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


def check_room(probed: Probed) -> None:
    """Probes the clause `room`."""
    text, late = probed.text(probed.capacity), probed.capacity - BLOCK
    logits, _ = probed.read(text[:, late:], late, probed.after(text, late))
    if probed.differ(logits, probed.long_truth[:, late:]):
        raise Broken(
            "A block that ends at the last position of the cache gets wrong logits, so the cache "
            "has room for fewer tokens than it was made for. Make it larger, or write to its end."
        )


def check_tree(probed: Probed) -> None:
    """Probes the clause `tree`."""
    text, start = probed.text(TEXT), TEXT // 2
    tree = _two_drafts(probed)
    logits, _ = probed.read_tree(text[:, start : start + 1], tree, start)
    for nodes in ([0, 1], [2, 3]):
        path = np.concatenate([text[:, : start + 1], np.asarray(tree.tokens)[:, nodes]], axis=1)
        expected, _ = probed.read_each(path, np.arange(path.shape[1])[None])
        if probed.differ(logits[:, [0, 1 + nodes[0], 1 + nodes[1]]], expected[:, start:]):
            raise Broken(
                "A node of a tree gets other logits than its path would as a text. Read token t as "
                "the one at tree.positions, and attend to the entries below tree.start and to "
                "entry tree.start + i where tree.nodes[..., i]; but store it where it stands in "
                "the block."
            )


def check_move(probed: Probed) -> None:
    """Probes the clause `move`."""
    text, start = probed.text(TEXT), TEXT // 2
    tree = _two_drafts(probed)
    _, cache = probed.read_tree(text[:, start : start + 1], tree, start)
    path = jnp.broadcast_to(jnp.asarray([0, 3, 4, 3, 4], jnp.int32), (probed.rows, 5))
    try:
        cache = cache.move(jnp.full(probed.rows, start, jnp.int32), path)
    except AttributeError as error:
        raise Broken(
            f"{error}. The cache needs a method move(start, path): jax_sa.move_entries does this "
            "for its arrays."
        ) from error
    kept = [text[:, : start + 1], np.asarray(tree.tokens)[:, 2:], text[:, start + 1 : start + 2]]
    kept = np.concatenate(kept, axis=1)
    expected, _ = probed.read_each(kept, np.arange(kept.shape[1])[None])
    logits, _ = probed.read(kept[:, -1:], start + 3, cache)
    if probed.differ(logits, expected[:, -1:]):
        raise Broken(
            "After cache.move(start, path), the tokens of the path are not those that are seen. "
            "Entry start[b] + j must hold what entry start[b] + path[b, j] held, in every layer: "
            "jax_sa.move_entries does this for an array."
        )


def _two_drafts(probed: Probed) -> DraftTree:
    """Of each row a tree of two drafts of two tokens: nodes 0 and 1, nodes 2 and 3."""
    draft = probed.text(2, seed=2)
    tokens = np.concatenate([draft, probed.another(draft)], axis=1)

    def of_each(*values: int) -> jax.Array:
        return jnp.broadcast_to(jnp.asarray(values, jnp.int32), tokens.shape)

    return DraftTree(
        tokens=jnp.asarray(tokens),
        parents=of_each(ROOT, 0, ROOT, 2),
        depth=of_each(1, 2, 1, 2),
        match_length=of_each(1, 1, 1, 1),
        source=of_each(1, 1, 1, 1),
        length=jnp.full(probed.rows, 4, jnp.int32),
    )


def note_beyond(probed: Probed) -> None:
    """Probes the clause `beyond`."""
    text, late = probed.text(probed.capacity), probed.capacity - BLOCK // 2
    beyond = np.concatenate([text[:, late:], text[:, : BLOCK // 2]], axis=1)
    _, cache = probed.read(beyond, late, probed.after(text, late))
    logits, _ = probed.read(text[:, late : late + 1], late, cache)
    if probed.differ(logits, probed.long_truth[:, late : late + 1]):
        raise Broken(
            "What is written beyond the capacity moves back over older tokens, or wraps around. "
            "jax_sa.Decoder never writes there; a loop of your own must not either."
        )


def note_length(probed: Probed) -> None:
    """Probes the clause `length`."""
    start = jnp.full(probed.rows, 2, jnp.int32)
    tokens = jnp.asarray(probed.text(BLOCK))
    _, _, length = probed._read(probed.params, tokens, start, probed.make_cache())
    if not np.array_equal(length, start):
        raise Broken("The model advances cache.length itself. jax_sa.Decoder ignores that.")
