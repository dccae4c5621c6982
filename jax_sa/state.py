"""The state: one suffix automaton per slot, as a pytree of arrays. And which index to keep."""

import dataclasses
import enum
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, Sharding

from jax_sa._checks import INT32_MAX, check_array, check_choice, check_int
from jax_sa._targets import unusable_reason
from jax_sa.scan_state import ScanState, scan_slot_shapes

WINDOW = 32
"""Repeated suffixes that a slot keeps at hand, and whose most recent ends it keeps exact."""

MAX_MAX_SEQ_LEN = 2**28
"""The largest `max_seq_len`: node ids and table entries then fit int32 with a bit to spare."""


class Status(enum.IntFlag):
    """Bits of `State.status`, set by the device and cleared by `reset`.

    A slot's status is 0 as long as everything asked of it was done. A row whose slot is out of
    range has no slot to say so on.
    """

    FULL = 1
    """Tokens beyond `max_seq_len` were not appended. Lookups of the slot draft nothing."""
    CONFLICT = 2
    """A call named the slot more than once, or copied into it from a slot that the same call
    overwrote: the first row took effect, the others did not. Lookups go on drafting."""
    OUT_OF_RANGE = 4
    """A row's length was out of range, so that its tokens were not appended, or the source of a
    copy into the slot was no slot. The slot's text is not what it was meant to be, so lookups
    draft nothing until a reset, or until a copy into the slot."""


class Invalid(enum.IntFlag):
    """Bits that `validate` returns for a slot: in which of its arrays something is wrong.

    With LENGTH, the others were not looked at.
    """

    LENGTH = 1
    """`length` is not in 0..N."""
    NODES = 2
    """`nodes`, `clones` or `num_clones` are not those of the text's automaton."""
    SUFFIXES = 4
    """`suffixes` are not the longest repeated suffixes of the text."""
    EDGES = 8
    """`edges` lacks an edge, has one too many or twice, one with another target, or one where no
    search finds it among the first 4,096 entries that it passes."""
    MATCH = 16
    """`match` of a `ScanState` is not what comparing the text with itself gives."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """The online suffix automata (Blumer et al. 1985) of `S` texts of at most `N` tokens each.

    S: slots; N: `max_seq_len`; W: `WINDOW`; E: entries of the edge table, 5/2 N + 16.

    Every array is int32, and every reference is an index within its slot: a state can be copied,
    sharded over its slots, saved and loaded on another platform. Every array of an empty slot is
    zeros but its seed. Ops take the state and return it updated in place where it is donated.

    A call from Python takes about a microsecond for each array that it is given and donated, so
    they are three: the small ones are columns of `numbers`, and those that no program needs to
    read are behind each other in `index`. The properties below take them out, as copies.

    Nodes of a slot: 0 is the root; 1..N are prefix nodes (node i is the text's first i tokens, so
    i is also its length and its first end position); N+1.. are clones in the order they were made.
    An end position counts the tokens up to the end of an occurrence.

    Edges: the edge `tokens[i]` from prefix node i to i + 1 is implied by the text. All others are
    explicit, at most 2 N of them, and stored by the first end position of their source. Nodes of
    one first end share an edge that leads to the same node: it is stored once, with the length of
    the longest of them, and holds down to the next shorter one that is stored.
    """

    numbers: jax.Array
    """[S, 4] `length`, `status`, `num_clones` and `seed`."""
    tokens: jax.Array
    """[S, N] the text."""
    index: jax.Array
    """[S, M] `edges`, `suffixes`, `nodes` and `clones`, flat, one behind the other, and
    zeros up to a multiple of 4."""

    @property
    def num_slots(self) -> int:
        """S, the number of slots."""
        return self.tokens.shape[0]

    @property
    def max_seq_len(self) -> int:
        """N, the tokens that a slot has room for."""
        return self.tokens.shape[-1]

    @property
    def length(self) -> jax.Array:
        """[S] tokens in the text."""
        return self.numbers[..., NUMBERS.index("length")]

    @property
    def status(self) -> jax.Array:
        """[S] bits of `Status`."""
        return self.numbers[..., NUMBERS.index("status")]

    @property
    def num_clones(self) -> jax.Array:
        """[S] clones made."""
        return self.numbers[..., NUMBERS.index("num_clones")]

    @property
    def seed(self) -> jax.Array:
        """[S] the seed of the edge table's hash, the slot's own: it stays when a slot is reset."""
        return self.numbers[..., NUMBERS.index("seed")]

    @property
    def edges(self) -> jax.Array:
        """[S, E, 4] in blocks of 8, by hash of (seed, first end, token), and of the length where
        blocks are full: (first end of the sources + 1 or 0 if free, token, 2 * target + (1 if the
        edge of the longest source is solid), length of the longest source).
        """
        return self._part("edges")

    @property
    def suffixes(self) -> jax.Array:
        """[S, W, 3] the longest repeated suffixes of the text, longest first: (node, length, first
        end position). The root ends the list.
        """
        return self._part("suffixes")

    @property
    def nodes(self) -> jax.Array:
        """[S, 2N, 2] by node: (suffix link, its most recent end position before the text's own end,
        0 if that is its first).
        """
        return self._part("nodes")

    @property
    def clones(self) -> jax.Array:
        """[S, N, 2] by node - N - 1: (length, first end position)."""
        return self._part("clones")

    def _part(self, name: str) -> jax.Array:
        begin, shape = 0, ()
        for other, shape in index_shapes(self.max_seq_len).items():
            if other == name:
                break
            begin += math.prod(shape)
        flat = self.index[..., begin : begin + math.prod(shape)]
        return flat.reshape(*flat.shape[:-1], *shape)


NUMBERS = ("length", "status", "num_clones", "seed")
"""The columns of `State.numbers`."""


def index_shapes(max_seq_len: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays in one slot's part of `State.index`, in their order."""
    n = max_seq_len
    return {
        # A text of n tokens has at most 2n explicit edges, so the table is never more than 4/5
        # full, and on real text never more than half. It has whole blocks of 8; what is left over
        # is not used. First, as an edge is loaded in one piece.
        "edges": (5 * n // 2 + 16, 4),
        "suffixes": (WINDOW, 3),
        "nodes": (2 * n, 2),
        "clones": (n, 2),
    }


def slot_shapes(max_seq_len: int) -> dict[str, tuple[int, ...]]:
    """The shapes of one slot's arrays, by field of `State`."""
    words = sum(math.prod(shape) for shape in index_shapes(max_seq_len).values())
    return {
        "numbers": (len(NUMBERS),),
        "tokens": (max_seq_len,),
        "index": (-(-words // _EDGE_WORDS) * _EDGE_WORDS,),
    }


_EDGE_WORDS = 4
"""The int32s of an edge, and what the size of a slot's part of `State.index` is a multiple of, so
that the edges of every slot are aligned."""


def unpack(state: State) -> dict[str, Any]:
    """All arrays of a state by name, as its docstring has them; of NumPy arrays, views."""
    names = (*NUMBERS, "tokens", *index_shapes(state.max_seq_len))
    return {name: getattr(state, name) for name in names}


def pack(arrays: Mapping[str, np.ndarray]) -> State:
    """The state, of NumPy arrays, that `unpack` took apart.

    Raises:
      ValueError, TypeError: the arrays do not belong together.
    """
    (num_slots,) = check_array("state.length", arrays["length"], jnp.int32, ("S",))
    _, max_seq_len = check_array("state.tokens", arrays["tokens"], jnp.int32, (num_slots, "N"))
    parts = {**dict.fromkeys(NUMBERS, ()), **index_shapes(max_seq_len)}
    for name, shape in parts.items():
        check_array(f"state.{name}", arrays[name], jnp.int32, (num_slots, *shape))
    index = np.zeros((num_slots, *slot_shapes(max_seq_len)["index"]), np.int32)
    state = State(np.stack([arrays[name] for name in NUMBERS], 1), arrays["tokens"], index)
    for name in index_shapes(max_seq_len):
        getattr(state, name)[...] = arrays[name]
    return state


AnyState = State | ScanState
"""What the ops take: the state of either index."""

StateT = TypeVar("StateT", State, ScanState)
"""The type of what an op returns: a state of the index that it took."""

INDEXES = ("automaton", "scan", "auto")
"""The choices of `init`'s `index`."""

MAX_SCANNED_TOKENS = 2**19
"""On a GPU, `index="auto"` scans up to so many tokens of all slots together (docs/scan.md)."""

MAX_SCANNED_LENGTH = 2**15
"""And up to so many tokens of a slot, whose text few multiprocessors share."""


def _choose_index(index: str, num_slots: int, max_seq_len: int, sharding: Sharding | None) -> str:
    """The index that `init` makes, "automaton" or "scan"."""
    check_choice("index", index, INDEXES)
    backend = _default_backend()
    if sharding is not None:
        backend = next(iter(sharding.device_set)).platform
        (num_slots,) = sharding.shard_shape((num_slots,))
    reason = unusable_reason(backend)
    if index == "auto":
        few = num_slots * max_seq_len <= MAX_SCANNED_TOKENS and max_seq_len <= MAX_SCANNED_LENGTH
        return "scan" if reason or (backend != "cpu" and few) else "automaton"
    if index == "automaton" and reason:
        raise ValueError(
            f'index: expected "scan", which needs no handlers, got "automaton": {reason}'
        )
    return index


def index_of(state: AnyState) -> str:
    """The index that a state is of, "automaton" or "scan"."""
    return "scan" if isinstance(state, ScanState) else "automaton"


def _default_backend() -> str:
    """The backend of new arrays: of `jax.default_device`, where one is set."""
    device = jax.config.jax_default_device
    return getattr(device, "platform", device) or jax.default_backend()


def get_state_size(max_seq_len: int, *, index: str = "automaton") -> int:
    """The bytes of one slot.

    Args:
      max_seq_len: N.
      index: "automaton", 68 bytes for each token of N, and about 700; "scan", 8 for each, and 8.

    Raises:
      ValueError: `max_seq_len` is outside [1, 2**28], or `index` is neither.
      TypeError: they are no int and no str.
    """
    max_seq_len = check_int("max_seq_len", max_seq_len, 1, MAX_MAX_SEQ_LEN)
    check_choice("index", index, tuple(_KINDS))
    _, shapes = _KINDS[index]
    return sum(4 * math.prod(shape) for shape in shapes(max_seq_len).values())


@overload
def init(
    num_slots: int,
    max_seq_len: int,
    *,
    seed: int = 0,
    index: Literal["automaton"] = "automaton",
    sharding: Sharding | None = None,
) -> State: ...
@overload
def init(
    num_slots: int,
    max_seq_len: int,
    *,
    seed: int = 0,
    index: Literal["scan"],
    sharding: Sharding | None = None,
) -> ScanState: ...
@overload
def init(
    num_slots: int,
    max_seq_len: int,
    *,
    seed: int = 0,
    index: str,
    sharding: Sharding | None = None,
) -> AnyState: ...
def init(
    num_slots: int,
    max_seq_len: int,
    *,
    seed: int = 0,
    index: str = "automaton",
    sharding: Sharding | None = None,
) -> AnyState:
    """A state of `num_slots` empty slots with room for `max_seq_len` tokens each.

    Args:
      num_slots: S.
      max_seq_len: N.
      seed: an int32 for the hash of every slot's edge table. It changes no result. Whoever knows
        it can write texts whose edges collide, so that appending them takes quadratic time: where
        texts come from strangers, draw it at random and keep it to yourself. The scan has none.
      index: what finds matches; every op takes the state of either. "automaton": a `State`, whose
        steps do not depend on the length of a text; on CPU and CUDA. "scan": a `ScanState`, on
        every backend, an eighth of the memory; a step reads the whole text. "auto": the one that
        suits the backend and the sizes: the automaton on a CPU; on a GPU the scan where slots have
        room for at most 2**15 tokens, and those of a device for at most 2**19 together, else the
        automaton; the scan on any other backend.
      sharding: of every array, such as `NamedSharding(mesh, PartitionSpec("data"))` to split the
        slots over a mesh axis; each device allocates its own part. None: on the default device.

    Raises:
      ValueError: `num_slots` is below 1, `max_seq_len` outside [1, 2**28], `seed` no int32,
        `index` none of these, the automaton does not run on the backend, or the slots cannot be
        split into equal parts, or would not be split alone.
      TypeError: one of them is not an int, `index` no str, or `sharding` is none.
    """
    num_slots = check_int("num_slots", num_slots, 1)
    max_seq_len = check_int("max_seq_len", max_seq_len, 1, MAX_MAX_SEQ_LEN)
    seed = check_int("seed", seed, -INT32_MAX - 1)
    if sharding is not None:
        _check_sharding(sharding, num_slots)

    kind, shapes = _KINDS[_choose_index(index, num_slots, max_seq_len, sharding)]

    def make() -> AnyState:
        arrays = {
            name: jnp.full((num_slots, *shape), 0, jnp.int32)
            for name, shape in shapes(max_seq_len).items()
        }
        if kind is State:
            arrays["numbers"] = arrays["numbers"].at[:, NUMBERS.index("seed")].set(seed)
        return kind(**arrays)

    return make() if sharding is None else jax.jit(make, out_shardings=sharding)()


def _check_sharding(sharding: Any, num_slots: int) -> None:
    if not isinstance(sharding, Sharding):
        got = type(sharding).__name__
        raise TypeError(f"sharding: expected a jax.sharding.Sharding, got {got}")
    if isinstance(sharding, NamedSharding) and any(sharding.spec[1:]):
        raise ValueError(f"sharding: expected to split the slots alone, got {sharding.spec}")
    try:
        sharding.shard_shape((num_slots,))
    except ValueError:
        raise ValueError(
            f"sharding: expected to split {num_slots} slots into equal parts, got {sharding}"
        ) from None


def check_state(state: Any) -> None:
    """Raises TypeError or ValueError unless `state`'s arrays belong together."""
    for kind, shapes in _KINDS.values():
        if isinstance(state, kind):
            return _check_arrays(state, shapes)
    raise TypeError(f"state: expected a jax_sa.State or ScanState, got {type(state).__name__}")


def _check_arrays(state: AnyState, shapes: Callable[[int], dict[str, tuple[int, ...]]]) -> None:
    num_slots, max_seq_len = check_array("state.tokens", state.tokens, jnp.int32, ("S", "N"))
    for name, shape in shapes(max_seq_len).items():
        check_array(f"state.{name}", getattr(state, name), jnp.int32, (num_slots, *shape))


_KINDS = {"automaton": (State, slot_shapes), "scan": (ScanState, scan_slot_shapes)}
