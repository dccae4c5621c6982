"""Requests to slots, for engines whose requests come and go."""

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from jax_sa._checks import INT32_MIN, check_array, check_bool, check_choice, check_int
from jax_sa._options import DraftOptions, normalise
from jax_sa.automaton import Draft, extend_lookup, insert, lookup, read_tokens
from jax_sa.budget import cut_draft
from jax_sa.host_build import build_on_host, check_tokens
from jax_sa.pool import Pool, check_pool
from jax_sa.pool_insert import insert_slots, insert_texts
from jax_sa.state import INDEXES, AnyState, Status, get_state_size, index_of, init
from jax_sa.verify import merge_drafts


@dataclasses.dataclass(frozen=True)
class SAConfig(DraftOptions):
    """The slots of a `SuffixAutomatonManager`, and the options of their drafts.

    All slots are allocated at once: `max_slots * jax_sa.get_state_size(max_seq_len, index=index)`
    bytes, about 68 for each token of each slot, or 8 where the index is a scan. The defaults, 64
    requests of 32,768 tokens, are 143 MB, small beside any model; 256 requests of 262,144 tokens
    would be 4.6 GB. Choose the sizes of the engine's own cache.

    Raises:
      ValueError, TypeError: naming the option.
    """

    max_seq_len: int = 32_768
    """N, the tokens that a slot has room for: a request's prompt and new tokens."""
    max_slots: int = 64
    """S, the maximum requests at a time."""
    threshold: int = 4
    """The match length, plus the common prefix of both drafts, from which the automaton's draft is
    used instead of a neural one: the rule of `jax_sa.merge_drafts`."""
    seed: int = 0
    """The seed of every slot's hash, as in `jax_sa.init`: random where prompts come from
    strangers."""
    index: str = "automaton"
    """What finds matches, "automaton", "scan" or "auto", as in `jax_sa.init`."""
    sharding: Sharding | None = None
    """The state's, as in `jax_sa.init`: replicated over the mesh of an engine whose parameters are
    split, or split over its slots. None: on the default device."""

    def __post_init__(self) -> None:
        super().__post_init__()
        get_state_size(self.max_seq_len)  # which checks it
        check_choice("index", self.index, INDEXES)
        normalise(
            self,
            max_seq_len=int(self.max_seq_len),
            max_slots=check_int("max_slots", self.max_slots, 1),
            threshold=check_int("threshold", self.threshold, 1),
            seed=check_int("seed", self.seed, INT32_MIN),
        )


class _Batch(NamedTuple):
    """The rows of a batch, on the host and on the device: replaced together or not at all."""

    slots: list[int]
    """The slot of each row; -1 where its request was removed."""
    on_device: jax.Array
    """int32[B] the same, and -1 for the rows beyond."""
    groups: jax.Array | None
    """int32[B] the group of the pool that each row's request sees; None without a pool."""


class SuffixAutomatonManager:
    """Gives each request a slot of a `jax_sa.State`, and the batch of a step its slots.

        with jax_sa.SuffixAutomatonManager(config, max_num_requests=8) as manager:
            manager.add_request("a", prompt)       # while others are being decoded
            slots = manager.prepare(["a", "b"])    # whenever the batch changes
            draft = manager.lookup()
            draft = manager.extend(accepted.tokens, accepted.length)    # after each step
            manager.remove_request("b")            # its slot is free at once

    A batch always has `max_num_requests` rows, those without a request at the end, so that one
    compiled program serves every batch.

    Any thread may call any method at any time: each takes `lock`, and either happens as a whole or
    raises and changes nothing. `add_request` builds its automaton before it takes the lock, so
    that steps go on meanwhile. Only a device that fails in the middle of an update takes `state`,
    which was donated to it, with it; every later use of the state then raises JAX's error.

    An engine with a jitted step of its own gives it `manager.state`, donated, and the slots, and
    assigns the state that comes back to `manager.state`; where other threads use the manager, it
    does all of that under `with manager.lock`.

    With a pool, a request drafts from the texts of its group too, and its own text joins them when
    it is removed: see docs/pool.md for what that tells one request about another.
    """

    config: SAConfig
    """The slots, and the options of their drafts."""
    max_num_requests: int
    """B, the rows of a batch."""
    state: AnyState
    """The texts of all slots and their index, updated in place."""
    pool: Pool | None
    """The texts of requests that were removed, updated in place; None: no pool."""
    lock: threading.RLock
    """Held by every method while it reads or changes the manager."""

    def __init__(self, config: SAConfig, max_num_requests: int, *, pool: Pool | None = None):
        """Allocates all slots.

        Args:
          config: the slots, and the options of their drafts.
          max_num_requests: B, the rows of a batch.
          pool: as `jax_sa.init_pool` or `jax_sa.load` returns it, on the default device; it is
            donated. None: no pool.

        Raises:
          ValueError, TypeError: naming the argument.
        """
        if not isinstance(config, SAConfig):
            raise TypeError(f"config: expected a jax_sa.SAConfig, got {type(config).__name__}")
        self.config = config
        self.max_num_requests: int = check_int("max_num_requests", max_num_requests, 1)
        self.lock = threading.RLock()
        state = init(
            config.max_slots,
            config.max_seq_len,
            seed=config.seed,
            index=config.index,
            sharding=config.sharding,
        )
        self._index = index_of(state)
        # Bound to its device as what a step returns is, or its first use would be compiled apart.
        sharding = state.length.sharding
        self.state = jax.device_put(state, sharding)
        # What is not split over the slots is on all devices of the state.
        is_named = isinstance(sharding, NamedSharding)
        self._whole = sharding.update(spec=PartitionSpec()) if is_named else sharding
        if pool is not None:
            check_pool(pool)
            if self._index == "scan":
                raise ValueError("pool: expected None with a scan as the index, got a Pool")
            pool = jax.device_put(pool, self._whole)
        self.pool = pool
        self._slot_of: dict[Hashable, int] = {}
        self._group_of_slot: dict[int, int] = {}
        self._free_slots = list(range(config.max_slots))
        self._batch = self._make_batch([])
        self._is_open = True

    def __enter__(self) -> "SuffixAutomatonManager":
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()

    def shutdown(self) -> None:
        """Removes all requests and lets go of the state, whose memory is free once no one holds it.

        Every later call of another method raises a RuntimeError; another `shutdown` does nothing.
        """
        with self.lock:
            self._is_open = False
            self._slot_of, self._free_slots = {}, []
            self.state = self.pool = self._batch = None

    @property
    def state_size(self) -> int:
        """The bytes of one slot."""
        return get_state_size(self.config.max_seq_len, index=self._index)

    @property
    def num_free_slots(self) -> int:
        """The number of requests that can be added before one must be removed."""
        with self._opened():
            return len(self._free_slots)

    def add_request(
        self, request_id: Hashable, tokens: Sequence[int] | np.ndarray, *, group: int = 0
    ) -> int:
        """Gives a request a slot that holds its tokens.

        Its index is built on the host while the device goes on with its work, then copied into
        the slot. Nothing remains of a request that had the slot before. A request that was removed
        to make room comes back with its prompt and all tokens generated so far.

        Args:
          request_id: anything hashable.
          tokens: 0..N ints.
          group: of the pool, which the request sees and goes into; -1 for none. Without a pool, of
            no account.

        Returns:
          The slot, which may be the engine's own for the request's keys and values too.

        Raises:
          ValueError: the id is in use, no slot is free, the tokens are too many or no int32, or
            there is no such group.
          TypeError: the tokens are no ints.
        """
        with self._opened():
            self._free_slot_for(request_id)  # or no automaton is worth building
            most = 0 if self.pool is None else self.pool.num_groups - 1
        group = check_int("group", group, -1, most)
        tokens = check_tokens(tokens, self.config.max_seq_len)
        built = build_on_host(
            tokens, self.config.max_seq_len, seed=self.config.seed, index=self._index
        )
        built = jax.device_put(built, self._whole)
        with self._opened():
            slot = self._free_slot_for(request_id)
            self.state = _insert(self.state, built, np.int32(slot))
            self._slot_of[request_id] = slot
            self._group_of_slot[slot] = group
            self._free_slots.remove(slot)
            return slot

    def prepare(self, request_ids: Sequence[Hashable]) -> jax.Array:
        """Makes requests the rows of the batch, until the next call.

        Returns:
          int32[B] the slot of each row; -1 for a row without a request, which `extend` skips.

        Raises:
          ValueError: more than B ids, one that is unknown, or one that comes twice.
        """
        if len(request_ids) > self.max_num_requests:
            raise ValueError(
                f"request_ids: expected at most {self.max_num_requests}, got {len(request_ids)}"
            )
        with self._opened():
            slots = [self._slot(request_id) for request_id in request_ids]
            for row, slot in enumerate(slots):
                if slot in slots[:row]:
                    raise ValueError(
                        f"request_ids: expected each id once, got {request_ids[row]!r} twice"
                    )
            if slots != self._batch.slots:
                self._batch = self._make_batch(slots)
            return self._batch.on_device

    def lookup(
        self,
        neural_draft: Draft | jax.Array | None = None,
        *,
        limits: jax.Array | None = None,
    ) -> Draft:
        """Drafts for the batch, as when requests have joined it.

        Args:
          neural_draft: of B rows, as in `jax_sa.merge_drafts`, which is called with it and the
            config's threshold. None: the automata alone draft.
          limits: int32[B] drafted tokens of each row at most, neural ones included; below 0 counts
            as 0. None: no limit.

        Raises:
          ValueError, TypeError: for a wrong shape or dtype, naming the argument.
        """
        self._check_limits(limits)
        with self._opened():
            batch = self._batch
            seen = (self.pool, batch.groups)
            return _lookup(self.config, self.state, batch.on_device, neural_draft, limits, *seen)

    def extend(
        self,
        tokens: jax.Array,
        lengths: jax.Array,
        neural_draft: Draft | jax.Array | None = None,
        *,
        limits: jax.Array | None = None,
    ) -> Draft:
        """Appends the tokens that the batch's requests read or wrote, and drafts those that follow.

        Args:
          tokens: int32[B, T]; each T is compiled once.
          lengths: int32[B] in 0..T, as in `jax_sa.extend`; rows without a request are skipped.
          neural_draft: as in `lookup`.
          limits: as in `lookup`.

        Raises:
          ValueError, TypeError: for a wrong shape or dtype, naming the argument.
        """
        check_array("tokens", tokens, jnp.int32, (self.max_num_requests, "T"))
        check_array("lengths", lengths, jnp.int32, (self.max_num_requests,))
        self._check_limits(limits)
        with self._opened():
            batch = self._batch
            rows = (tokens, lengths, batch.on_device, neural_draft, limits)
            self.state, draft = _extend_lookup(
                self.config, self.state, *rows, self.pool, batch.groups
            )
            return draft

    def _check_limits(self, limits: jax.Array | None) -> None:
        if limits is not None:
            check_array("limits", limits, jnp.int32, (self.max_num_requests,))

    def remove_request(self, request_id: Hashable, *, insert: bool = True, start: int = 0) -> None:
        """Frees the request's slot; its row of the batch, if it has one, is skipped from now on.

        Args:
          request_id: of `add_request`.
          insert: whether the request's text goes into the pool, where there is one and the request
            has a group.
          start: tokens at the text's beginning that do not, such as those of the prompt. Beyond the
            text's end nothing does.

        Raises:
          ValueError: the id is unknown, or `start` is below 0.
          TypeError: an argument is of another type.
        """
        insert, start = check_bool("insert", insert), check_int("start", start, 0)
        with self._opened():
            slot = self._slot(request_id)
            batch = self._batch
            if slot in batch.slots:
                batch = self._make_batch([-1 if other == slot else other for other in batch.slots])
            if self.pool is not None and insert:
                numbers = np.int32([slot, start, self._group_of_slot[slot]])
                is_whole = self.state.length.sharding.is_fully_replicated
                put_in = _insert_slot if is_whole else _insert_sent
                self.pool = put_in(self.pool, self.state, *numbers)
            del self._slot_of[request_id], self._group_of_slot[slot]
            self._batch = batch
            self._free_slots.append(slot)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[None]:
        """Holds the lock of a manager that is not shut down."""
        with self.lock:
            if not self._is_open:
                raise RuntimeError("manager: expected no call after shutdown()")
            yield

    def _free_slot_for(self, request_id: Hashable) -> int:
        if request_id in self._slot_of:
            raise ValueError(f"request_id: expected a new one, got {request_id!r}")
        if not self._free_slots:
            raise ValueError(
                f"request_id: expected a free slot for {request_id!r}, got {self.config.max_slots} "
                f"requests in {self.config.max_slots} slots"
            )
        return self._free_slots[0]

    def _slot(self, request_id: Hashable) -> int:
        if request_id not in self._slot_of:
            raise ValueError(f"request_id: expected one that was added, got {request_id!r}")
        return self._slot_of[request_id]

    def _make_batch(self, slots: list[int]) -> _Batch:
        rows, groups = np.full((2, self.max_num_requests), -1, np.int32)
        rows[: len(slots)] = slots
        if self.pool is None:
            return _Batch(slots, jax.device_put(rows, self._whole), None)
        groups[: len(slots)] = [self._group_of_slot.get(slot, -1) for slot in slots]
        return _Batch(slots, jax.device_put(rows, self._whole), jax.device_put(groups, self._whole))


_insert = jax.jit(insert, donate_argnames="state")


@functools.partial(jax.jit, donate_argnames="pool")
def _insert_slot(
    pool: Pool, state: AnyState, slot: jax.Array, start: jax.Array, group: jax.Array
) -> Pool:
    """The pool with the text of a slot from `start` on."""
    length = state.length[slot]
    start = jnp.minimum(start, length)[None]
    return insert_slots(pool, state, slot[None], starts=start, groups=group[None])


@functools.partial(jax.jit, donate_argnames="pool")
def _insert_sent(
    pool: Pool, state: AnyState, slot: jax.Array, start: jax.Array, group: jax.Array
) -> Pool:
    """The same where slots are split over devices: one has the text, and sends it to all."""
    is_slot = jnp.arange(state.num_slots, dtype=jnp.int32) == slot
    length, status = (
        jnp.sum(jnp.where(is_slot, leaf, 0), dtype=jnp.int32)
        for leaf in (state.length, state.status)
    )
    start = jnp.minimum(start, length)
    tokens = read_tokens(state, start[None], length=state.max_seq_len, slots=slot[None])
    has_gap = (status & int(Status.OUT_OF_RANGE)) != 0
    taken = jnp.where(has_gap, -1, length - start)
    return insert_texts(pool, tokens, taken[None], groups=group[None])


@functools.partial(jax.jit, static_argnames="config")
def _lookup(
    config: SAConfig,
    state: AnyState,
    slots: jax.Array,
    neural_draft: Draft | jax.Array | None,
    limits: jax.Array | None,
    pool: Pool | None,
    groups: jax.Array | None,
) -> Draft:
    draft = lookup(state, slots=slots, pool=pool, groups=groups, **config.lookup_options())
    return _merge(config, draft, neural_draft, limits)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def _extend_lookup(
    config: SAConfig,
    state: AnyState,
    tokens: jax.Array,
    lengths: jax.Array,
    slots: jax.Array,
    neural_draft: Draft | jax.Array | None,
    limits: jax.Array | None,
    pool: Pool | None,
    groups: jax.Array | None,
) -> tuple[AnyState, Draft]:
    options = {"slots": slots, "pool": pool, "groups": groups} | config.lookup_options()
    state, draft = extend_lookup(state, tokens, lengths, **options)
    return state, _merge(config, draft, neural_draft, limits)


def _merge(
    config: SAConfig,
    draft: Draft,
    neural_draft: Draft | jax.Array | None,
    limits: jax.Array | None,
) -> Draft:
    if neural_draft is not None:
        draft = merge_drafts(draft, neural_draft, config.threshold)
    return draft if limits is None else cut_draft(draft, limits)
