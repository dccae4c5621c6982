"""The ops as the tests call them: jitted, the state donated, plain lists as arguments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import reference

import jax_sa

LOOKUP_OPTIONS = (
    "max_draft",
    "min_match",
    "max_match",
    "occurrence",
    "draft_factor",
    "periodic",
)


def int32(values):
    return None if values is None else jnp.asarray(values, jnp.int32)


_extend = jax.jit(jax_sa.extend, donate_argnums=0)
_lookup = jax.jit(jax_sa.lookup, static_argnames=LOOKUP_OPTIONS)
_lookup_after = jax.jit(jax_sa.lookup_after, static_argnames=LOOKUP_OPTIONS)
_extend_lookup = jax.jit(jax_sa.extend_lookup, static_argnames=LOOKUP_OPTIONS, donate_argnums=0)
_reset = jax.jit(jax_sa.reset, donate_argnums=0)
_copy_slots = jax.jit(jax_sa.copy_slots, donate_argnums=0)


def pad(rows, width):
    """Rows of different lengths as a block, with a token that must not be read beyond them."""
    return [list(row) + [-7] * (width - len(row)) for row in rows]


def extend(state, rows, slots=None, lengths=None):
    width = max(map(len, rows), default=0)
    lengths = [len(row) for row in rows] if lengths is None else lengths
    tokens = int32(np.reshape(pad(rows, width), (len(rows), width)))
    return _extend(state, tokens, int32(lengths), slots=int32(slots))


def extend_lookup(state, rows, slots=None, lengths=None, limits=None, **options):
    width = max(map(len, rows), default=0)
    lengths = [len(row) for row in rows] if lengths is None else lengths
    tokens = int32(np.reshape(pad(rows, width), (len(rows), width)))
    return _extend_lookup(
        state, tokens, int32(lengths), slots=int32(slots), limits=int32(limits), **options
    )


def lookup_after(state, rows, slots=None, lengths=None, limits=None, **options):
    width = max(map(len, rows), default=0)
    lengths = [len(row) for row in rows] if lengths is None else lengths
    tokens = int32(np.reshape(pad(rows, width), (len(rows), width)))
    return _lookup_after(
        state, tokens, int32(lengths), slots=int32(slots), limits=int32(limits), **options
    )


def lookup(state, slots=None, limits=None, **options):
    return _lookup(state, slots=int32(slots), limits=int32(limits), **options)


def reset(state, slots):
    return _reset(state, int32(slots))


def copy_slots(state, src, dst):
    return _copy_slots(state, int32(src), int32(dst))


def reference_of(text, capacity=None):
    automaton = reference.Automaton(capacity or len(text))
    for token in text:
        automaton.append(token)
    return automaton


def assert_draft_equals(draft, row, automaton, max_draft, **options):
    drafting = {k: options.pop(k) for k in ("draft_factor", "periodic") if k in options}
    match = automaton.lookup(**options)
    expected = reference.draft(automaton.text, match, max_draft, **drafting)
    assert int(draft.match_length[row]) == match.length
    assert int(draft.match_end[row]) == match.end
    assert int(draft.length[row]) == len(expected)
    filled = expected + [jax_sa.DRAFT_FILL] * (max_draft - len(expected))
    assert np.asarray(draft.tokens[row]).tolist() == filled


def assert_drafts_nothing(draft, row):
    assert int(draft.length[row]) == int(draft.match_length[row]) == int(draft.match_end[row]) == 0
    assert np.all(np.asarray(draft.tokens[row]) == jax_sa.DRAFT_FILL)


def assert_states_equal(got, expected):
    jax.tree.map(functools.partial(np.testing.assert_array_equal, strict=True), got, expected)
