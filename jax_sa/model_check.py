"""Whether a model does what a decoder asks of one: it is called, and its logits compared.

Letters: B rows, C capacity of a row, T tokens of a block, V vocabulary.
"""

import dataclasses
import functools
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jax_sa import model_probes as probes
from jax_sa import packed_probes
from jax_sa._checks import check_bool, check_int, check_positive_float
from jax_sa.model_contract import check_params
from jax_sa.model_probes import OF_BLOCKS, SPECIAL_TOKENS, TOLERANCE, Broken, Probed
from jax_sa.packed_probes import OF_FLAT_BLOCKS, BlockModel, with_pages

MIN_CAPACITY = 16
"""C at least, so that short texts and what is refused fit."""

OK, BROKEN, NOTE, SKIPPED = "ok", "broken", "note", "not checked"


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
    packed: bool = False,
    trees: bool = False,
) -> ModelCheck:
    """Calls a model with a few small blocks, and says which clause of the contract it breaks.

        report = jax_sa.check_model(model, params, init_cache)
        print(report)
        assert report.ok

    It tells a wrong logit from rounding by how much the logits change with an earlier token, so
    random parameters will do where that is more than rounding. It takes the time to compile ten
    small programs, and to decode some `4 * capacity` tokens of each row one by one.

    Args:
      model: as `jax_sa.Decoder` describes it, or `jax_sa.PackedDecoder`.
      params: its parameters.
      init_cache: `init_cache(rows, capacity)` makes an empty cache. That of a packed model has
        pages for C tokens in each row, if it has any.
      rows: B, at least 2.
      capacity: C, at least 16. A cache that forgets old entries, such as one of a sliding window,
        shows only where C is larger than what it remembers.
      vocabulary: V, of which texts are made. None: as many as there are logits.
      special_tokens: ids that the model might take for padding or the end of a text.
      tolerance: by how much logits may differ, as a share of the change that another token before
        makes; never less than what rounding to the dtypes of parameters, cache and logits allows.
      packed: whether the model is one of flat blocks, for `jax_sa.PackedDecoder`.
      trees: whether to check what `tree_nodes` of a decoder asks for, too.

    Raises:
      ValueError, TypeError: naming the argument. What the model does wrong is no error.
    """
    rows = check_int("rows", rows, 2)
    capacity = check_int("capacity", capacity, MIN_CAPACITY)
    if not callable(model) or not callable(init_cache):
        raise TypeError("model, init_cache: expected functions")
    check_params(params)
    special_tokens = tuple(check_int("special_tokens", token, 0) for token in special_tokens)
    tolerance = check_positive_float("tolerance", tolerance)
    packed, trees = check_bool("packed", packed), check_bool("trees", trees)

    def make_cache() -> Any:
        cache = init_cache(rows, capacity)
        return with_pages(cache, rows, capacity) if packed else cache

    options = vocabulary, special_tokens, tolerance
    if packed:
        model = BlockModel(model)
    words = OF_FLAT_BLOCKS if packed else OF_BLOCKS
    return _check(Probed(model, params, make_cache, rows, capacity, *options, words), trees)


def check_on_copies(model: Any, params: Any, cache: Any, room: int, *, trees: bool) -> None:
    """Raises ValueError unless a model passes, on copies of a cache with `room` tokens a row."""
    _check_arrays(params, cache)
    room = check_int("check: prompt and new tokens", room, MIN_CAPACITY)

    def empty() -> Any:
        return dataclasses.replace(cache, length=jnp.zeros_like(cache.length))

    (rows,) = cache.length.shape
    _raise_if_broken(Probed(model, params, empty, rows, room), trees)


def check_packed_on_copies(
    model: Any, params: Any, cache: Any, rows: int, room: int, *, trees: bool
) -> None:
    """The same of a packed model; of pages, each row gets as many as all can have."""
    _check_arrays(params, cache)
    if (table := getattr(cache, "block_table", None)) is not None:
        pages = min(int(table.num_unclaimed) // rows, table.pages.shape[1])
        room = min(room, pages * table.block_size)
    room = check_int("check: tokens of each row", room, MIN_CAPACITY)
    make_cache = functools.partial(with_pages, cache, rows, room)
    options = {"words": OF_FLAT_BLOCKS}
    _raise_if_broken(Probed(BlockModel(model), params, make_cache, rows, room, **options), trees)


def _check_arrays(params: Any, cache: Any) -> None:
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((params, cache))):
        raise ValueError("check: expected arrays, got tracers: check the model outside of jit")


def _raise_if_broken(probed: Probed, trees: bool) -> None:
    report = _check(probed, trees)
    if not report.ok:
        decoder = probed.words.decoder
        raise ValueError(f"model: expected one that keeps the contract of {decoder}\n{report}")


@dataclasses.dataclass(frozen=True)
class _Probe:
    """How a clause is checked."""

    name: str
    promise: str
    run: Callable[[Probed], None]
    needs: tuple[str, ...] = ()
    """Clauses without which it would fail, too."""
    min_rows: int = 1
    required: bool = True


_SHARED = (
    _Probe("memory", "a token sees the tokens before it", probes.check_memory, ("shapes",)),
    _Probe("offset", "a block sees the tokens before it", probes.check_offset, ("memory",)),
    _Probe("order", "a token sees none after it", probes.check_order, ("memory", "offset")),
    _Probe("width", "logits do not depend on T", probes.check_width, ("offset", "order")),
    _Probe("special", "no token is taken for padding", probes.check_special, ("width",)),
    _Probe("refused", "what was refused is overwritten", probes.check_refused, ("memory",)),
    _Probe("alone", "rows do not see each other", probes.check_alone, ("memory",), min_rows=2),
    _Probe(
        "rows",
        "each row has its own position",
        probes.check_rows,
        ("refused", "alone"),
        min_rows=2,
    ),
    _Probe("late", "older tokens stay", probes.check_late, ("refused",)),
    _Probe("room", "a cache holds as many tokens as it says", probes.check_room, ("width", "late")),
)

_OF_BLOCKS = (
    _Probe("shapes", "logits [B, T, V] and the cache as it was given", probes.check_shapes),
    *_SHARED,
    _Probe(
        "beyond",
        "writes beyond the capacity are dropped",
        probes.note_beyond,
        ("room",),
        required=False,
    ),
    _Probe(
        "length",
        "cache.length stays as it is",
        probes.note_length,
        ("memory",),
        required=False,
    ),
)

_OF_FLAT_BLOCKS = (
    _Probe(
        "shapes", "logits [T, V] and the cache as it was given", packed_probes.check_flat_shapes
    ),
    *_SHARED,
    _Probe(
        "layout",
        "rows have different numbers of tokens",
        packed_probes.check_layout,
        ("width", "rows"),
    ),
    _Probe("padding", "padding writes nothing", packed_probes.check_padding, ("layout",)),
)

_OF_TREES = (
    _Probe("tree", "a node sees its path alone", probes.check_tree, ("width",)),
    _Probe("move", "an accepted path is put in order", probes.check_move, ("tree",)),
)


def _check(probed: Probed, trees: bool) -> ModelCheck:
    clauses: list[Clause] = []
    holds: set[str] = set()
    of_model = _OF_FLAT_BLOCKS if probed.words is OF_FLAT_BLOCKS else _OF_BLOCKS
    for probe in (*of_model, *(_OF_TREES if trees else ())):
        outcome, finding = OK, ""
        missing = [name for name in probe.needs if name not in holds]
        if missing:
            outcome, finding = SKIPPED, f"It needs {' and '.join(missing)}."
        elif probed.rows < probe.min_rows:
            outcome, finding = SKIPPED, "There is one row."
        else:
            try:
                probe.run(probed)
            except Broken as error:
                outcome, finding = BROKEN if probe.required else NOTE, str(error)
        if outcome == OK or (not missing and probed.rows < probe.min_rows):
            holds.add(probe.name)
        clauses.append(Clause(probe.name, probe.promise, outcome, finding))
    return ModelCheck(tuple(clauses))
