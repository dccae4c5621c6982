"""extend, lookup and extend_lookup against the reference, after every call."""

import inspection
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import texts

import jax_sa

LOOKUPS = [
    {},
    {"occurrence": "first"},
    {"min_match": 3},
    {"max_match": 2},
    {"max_match": 2, "occurrence": "first"},
    {"min_match": 2, "max_match": 2},
    {"draft_factor": 0.6},
    {"draft_factor": 2.0, "periodic": False},
    {"periodic": False},
]

STATIC = ("max_draft", "min_match", "max_match", "occurrence", "draft_factor", "periodic")
extend = jax.jit(jax_sa.extend, donate_argnums=0)
lookup = jax.jit(jax_sa.lookup, static_argnames=STATIC)
extend_lookup = jax.jit(jax_sa.extend_lookup, static_argnames=STATIC, donate_argnums=0)


def int32(values):
    return jnp.asarray(values, jnp.int32)


def reference_of(text, capacity=None):
    automaton = reference.Automaton(capacity or len(text))
    for token in text:
        automaton.append(token)
    return automaton


def assert_draft_equals(draft, row, automaton, max_draft, options=None):
    options = dict(options or {})
    drafting = {k: options.pop(k) for k in ("draft_factor", "periodic") if k in options}
    match = automaton.lookup(**options)
    expected = reference.draft(automaton.text, match, max_draft, **drafting)
    assert int(draft.match_length[row]) == match.length
    assert int(draft.match_end[row]) == match.end
    assert int(draft.length[row]) == len(expected)
    padded = expected + [jax_sa.DRAFT_FILL] * (max_draft - len(expected))
    assert np.asarray(draft.tokens[row]).tolist() == padded


def assert_drafts_nothing(draft, row):
    assert int(draft.length[row]) == int(draft.match_length[row]) == int(draft.match_end[row]) == 0
    assert np.all(np.asarray(draft.tokens[row]) == jax_sa.DRAFT_FILL)


@pytest.mark.parametrize("name", texts.SMALL)
def test_every_token(name):
    text = texts.SMALL[name]
    state = jax_sa.init(1, len(text))
    automaton = reference.Automaton(len(text))
    for n, token in enumerate(text):
        state = extend(state, int32([[token]]), int32([1]))
        automaton.append(token)
        options = LOOKUPS[n % len(LOOKUPS)]
        assert_draft_equals(lookup(state, max_draft=5, **options), 0, automaton, 5, options)
        if n % 7 == 0 or n + 1 == len(text):
            inspection.assert_slot_equals(state, 0, automaton)


@pytest.mark.parametrize("width", [2, 31, 32, 33, 1000])
@pytest.mark.parametrize("name", texts.SMALL)
def test_blocks_of_tokens(name, width):
    text = texts.SMALL[name]
    state = jax_sa.init(1, len(text))
    automaton = reference.Automaton(len(text))
    for begin in range(0, len(text), width):
        block = text[begin : begin + width]
        padded = block + [-7] * (width - len(block))
        state, draft = extend_lookup(state, int32([padded]), int32([len(block)]), max_draft=40)
        for token in block:
            automaton.append(token)
        assert_draft_equals(draft, 0, automaton, 40)
    inspection.assert_slot_equals(state, 0, automaton)


@pytest.mark.parametrize("options", LOOKUPS)
def test_extend_lookup_is_extend_then_lookup(options):
    text = texts.SMALL["source-code"]
    state, other = jax_sa.init(1, len(text)), jax_sa.init(1, len(text))
    for begin in range(0, len(text), 4):
        tokens, lengths = int32([text[begin : begin + 4]]), int32([4])
        state = extend(state, tokens, lengths)
        draft = lookup(state, max_draft=8, **options)
        other, fused = extend_lookup(other, tokens, lengths, max_draft=8, **options)
        jax.tree.map(np.testing.assert_array_equal, (state, draft), (other, fused))


@pytest.mark.parametrize("capacity", [1, 2, 3, 4, 5, 31, 32, 33, 64, 100])
@pytest.mark.parametrize("make", [texts.most_states, texts.most_edges, texts.fibonacci_word])
def test_capacity(make, capacity):
    """N - 1 and N tokens fit whatever the text; token N + 1 is refused and changes nothing else."""
    text = make(max(capacity, 3))[:capacity]
    state = jax_sa.init(1, capacity)
    if capacity > 1:
        state = extend(state, int32([text[:-1]]), int32([capacity - 1]))
        inspection.assert_slot_equals(state, 0, reference_of(text[:-1], capacity))
    state = extend(state, int32([text[-1:]]), int32([1]))
    automaton = reference_of(text)
    inspection.assert_slot_equals(state, 0, automaton)
    assert_draft_equals(lookup(state, max_draft=5), 0, automaton, 5)
    state, draft = extend_lookup(state, int32([[text[0]]]), int32([1]), max_draft=5)
    assert_drafts_nothing(draft, 0)
    assert_drafts_nothing(lookup(state, max_draft=5), 0)
    inspection.assert_slot_equals(state, 0, automaton, status=jax_sa.Status.FULL)


@pytest.mark.parametrize("capacity", [1, 2, 7, 40])
def test_tokens_fill_what_room_there_is(capacity):
    text = texts.random_text(2, capacity + 3)
    state = extend(jax_sa.init(1, capacity), int32([text]), int32([len(text)]))
    automaton = reference_of(text[:capacity])
    inspection.assert_slot_equals(state, 0, automaton, status=jax_sa.Status.FULL)


LARGE = {
    "source-code": lambda n: (texts.source_code() * (n // 1000))[:n],
    "random-2": lambda n: texts.random_text(2, n),
    "random-128256": lambda n: texts.random_text(128_256, n),
    "most-states": texts.most_states,
    "most-edges": texts.most_edges,
}


@pytest.mark.parametrize("capacity", [8_192, 32_768, 131_072, 262_144])
@pytest.mark.parametrize("name", LARGE)
def test_full_slots_lose_nothing(name, capacity):
    text = LARGE[name](capacity)
    state = extend(jax_sa.init(1, capacity), int32([text]), int32([capacity]))
    automaton = reference_of(text)
    inspection.assert_slot_equals(state, 0, automaton)
    assert_draft_equals(lookup(state, max_draft=16), 0, automaton, 16)


def test_empty_slot_drafts_nothing():
    draft = lookup(jax_sa.init(2, 8), max_draft=3)
    assert_drafts_nothing(draft, 0)
    assert_drafts_nothing(draft, 1)
