"""Requests to slots, for engines whose requests come and go."""

import dataclasses
import functools
from collections.abc import Hashable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jax_sa._checks import check_array, check_int
from jax_sa._options import DraftOptions
from jax_sa.automaton import Draft, extend_lookup, insert, lookup
from jax_sa.host_build import build_on_host, check_tokens
from jax_sa.state import State, get_state_size, init
from jax_sa.verify import merge_drafts


@dataclasses.dataclass(frozen=True)
class SAConfig(DraftOptions):
    """The slots of a `SuffixAutomatonManager`, and how they draft.

    Raises:
      ValueError, TypeError: naming the option.
    """

    max_seq_len: int
    """N, the tokens of a request, prompt and new, that a slot has room for."""
    max_slots: int
    """S, the requests at a time."""
    threshold: int = 4
    """The match length from which the automaton's draft is used instead of a neural one."""

    def __post_init__(self):
        super().__post_init__()
        get_state_size(self.max_seq_len)  # which checks it
        check_int("max_slots", self.max_slots, 1)
        check_int("threshold", self.threshold, 1)


class SuffixAutomatonManager:
    """Gives each request a slot of a `jax_sa.State`, and the batch of a step its slots.

        manager = jax_sa.SuffixAutomatonManager(config, max_num_requests=8)
        manager.add_request("a", prompt)       # while others are being decoded
        slots = manager.prepare(["a", "b"])    # whenever the batch changes
        draft = manager.lookup()
        draft = manager.extend(accepted.tokens, accepted.length)    # after each step
        manager.remove_request("b")            # its slot is free at once

    A batch always has `max_num_requests` rows, those without a request at the end, so that one
    compiled program serves every batch.

    An engine with a jitted step of its own gives it `manager.state`, donated, and the slots, and
    assigns the state that comes back to `manager.state`.
    """

    state: State
    """The automata of all slots, updated in place."""

    def __init__(self, config: SAConfig, max_num_requests: int):
        """Allocates all slots on the default device.

        Args:
          config: the slots, and how they draft.
          max_num_requests: B, the rows of a batch.

        Raises:
          ValueError, TypeError: naming the argument.
        """
        if not isinstance(config, SAConfig):
            raise TypeError(f"config: expected a jax_sa.SAConfig, got {type(config).__name__}")
        self.config = config
        self.max_num_requests = check_int("max_num_requests", max_num_requests, 1)
        state = init(config.max_slots, config.max_seq_len)
        # Bound to its device as what a step returns is, or its first use would be compiled apart.
        self.state = jax.device_put(state, state.length.sharding)
        self._slot_of: dict[Hashable, int] = {}
        self._free_slots = list(range(config.max_slots))
        self._set_batch([])

    @property
    def state_size(self) -> int:
        """The bytes of one slot."""
        return get_state_size(self.config.max_seq_len)

    @property
    def num_free_slots(self) -> int:
        """How many requests can be added before one must be removed."""
        return len(self._free_slots)

    def add_request(self, request_id: Hashable, tokens: Sequence[int] | np.ndarray) -> int:
        """Gives a request a slot that holds its tokens.

        The automaton is built on the host while the device goes on with what it was given, then
        copied into the slot. That a slot was used before leaves no trace. A request that was
        removed to make room comes back with its prompt and all tokens generated so far.

        Args:
          request_id: anything hashable.
          tokens: 0..N ints.

        Returns:
          The slot, which may be the engine's own for the request's keys and values too.

        Raises:
          ValueError: the id is in use, no slot is free, or the tokens are too many or no int32.
          TypeError: the tokens are no ints.
        """
        if request_id in self._slot_of:
            raise ValueError(f"request_id: expected a new one, got {request_id!r}")
        tokens = check_tokens(tokens, self.config.max_seq_len)
        if not self._free_slots:
            raise ValueError(
                f"request_id: expected a free slot for {request_id!r}, got {self.config.max_slots} "
                f"requests in {self.config.max_slots} slots"
            )
        built = build_on_host(tokens, self.config.max_seq_len)
        built = jax.device_put(built, self.state.length.sharding)
        slot = self._free_slots.pop(0)
        self.state = _insert(self.state, built, np.int32(slot))
        self._slot_of[request_id] = slot
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
        slots = [self._slot(request_id) for request_id in request_ids]
        for row, slot in enumerate(slots):
            if slot in slots[:row]:
                raise ValueError(
                    f"request_ids: expected each id once, got {request_ids[row]!r} twice"
                )
        if slots != self._batch:
            self._set_batch(slots)
        return self._batch_slots

    def lookup(self, neural_draft: Draft | jax.Array | None = None) -> Draft:
        """Drafts for the batch, as when requests have joined it.

        Args:
          neural_draft: of B rows, as in `jax_sa.merge_drafts`, which is called with it and the
            config's threshold. None: the automata alone draft.

        Raises:
          ValueError, TypeError: for a wrong shape or dtype, naming the argument.
        """
        return _lookup(self.config, self.state, self._batch_slots, neural_draft)

    def extend(
        self,
        tokens: jax.Array,
        lengths: jax.Array,
        neural_draft: Draft | jax.Array | None = None,
    ) -> Draft:
        """Appends what the batch's requests read or wrote, and drafts what follows.

        Args:
          tokens: int32[B, T]; each T is compiled once.
          lengths: int32[B] in 0..T, as in `jax_sa.extend`; rows without a request are skipped.
          neural_draft: as in `lookup`.

        Raises:
          ValueError, TypeError: for a wrong shape or dtype, naming the argument.
        """
        check_array("tokens", tokens, jnp.int32, (self.max_num_requests, "T"))
        check_array("lengths", lengths, jnp.int32, (self.max_num_requests,))
        self.state, draft = _extend_lookup(
            self.config, self.state, tokens, lengths, self._batch_slots, neural_draft
        )
        return draft

    def remove_request(self, request_id: Hashable) -> None:
        """Frees the request's slot; its row of the batch, if it has one, is skipped from now on.

        Raises:
          ValueError: the id is unknown.
        """
        slot = self._slot(request_id)
        del self._slot_of[request_id]
        self._free_slots.append(slot)
        if slot in self._batch:
            self._set_batch([-1 if other == slot else other for other in self._batch])

    def _slot(self, request_id: Hashable) -> int:
        if request_id not in self._slot_of:
            raise ValueError(f"request_id: expected one that was added, got {request_id!r}")
        return self._slot_of[request_id]

    def _set_batch(self, slots: list[int]) -> None:
        self._batch = slots
        rows = np.full(self.max_num_requests, -1, np.int32)
        rows[: len(slots)] = slots
        self._batch_slots = jnp.asarray(rows)


_insert = jax.jit(insert, donate_argnames="state")


@functools.partial(jax.jit, static_argnames="config")
def _lookup(
    config: SAConfig, state: State, slots: jax.Array, neural_draft: Draft | jax.Array | None
) -> Draft:
    return _merge(config, lookup(state, slots=slots, **config.lookup_options()), neural_draft)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def _extend_lookup(
    config: SAConfig,
    state: State,
    tokens: jax.Array,
    lengths: jax.Array,
    slots: jax.Array,
    neural_draft: Draft | jax.Array | None,
) -> tuple[State, Draft]:
    state, draft = extend_lookup(state, tokens, lengths, slots=slots, **config.lookup_options())
    return state, _merge(config, draft, neural_draft)


def _merge(config: SAConfig, draft: Draft, neural_draft: Draft | jax.Array | None) -> Draft:
    if neural_draft is None:
        return draft
    return merge_drafts(draft, neural_draft, config.threshold)
