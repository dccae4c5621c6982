"""extend, lookup and extend_lookup against the reference, after every call."""

import jax
import numpy as np
import pytest
import texts
from calls import (
    assert_draft_equals,
    assert_drafts_nothing,
    extend,
    extend_lookup,
    lookup,
    reference_of,
)
from inspection import assert_slot_equals
from reference import Automaton

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


@pytest.mark.parametrize("name", texts.SMALL)
def test_every_token(name):
    text = texts.SMALL[name]
    state = jax_sa.init(1, len(text))
    automaton = Automaton(len(text))
    for n, token in enumerate(text):
        state = extend(state, [[token]])
        automaton.append(token)
        options = LOOKUPS[n % len(LOOKUPS)]
        assert_draft_equals(lookup(state, max_draft=5, **options), 0, automaton, 5, **options)
        if n % 7 == 0 or n + 1 == len(text):
            assert_slot_equals(state, 0, automaton)


@pytest.mark.parametrize("width", [2, 31, 32, 33, 1000])
@pytest.mark.parametrize("name", texts.SMALL)
def test_blocks_of_tokens(name, width):
    text = texts.SMALL[name]
    state = jax_sa.init(1, len(text))
    automaton = Automaton(len(text))
    for begin in range(0, len(text), width):
        block = text[begin : begin + width]
        state, draft = extend_lookup(state, [block], max_draft=40)
        for token in block:
            automaton.append(token)
        assert_draft_equals(draft, 0, automaton, 40)
    assert_slot_equals(state, 0, automaton)


@pytest.mark.parametrize("options", LOOKUPS)
def test_extend_lookup_is_extend_then_lookup(options):
    text = texts.SMALL["source-code"]
    state, other = jax_sa.init(1, len(text)), jax_sa.init(1, len(text))
    for begin in range(0, len(text), 4):
        block = text[begin : begin + 4]
        state = extend(state, [block])
        draft = lookup(state, max_draft=8, **options)
        other, fused = extend_lookup(other, [block], max_draft=8, **options)
        jax.tree.map(np.testing.assert_array_equal, (state, draft), (other, fused))


@pytest.mark.parametrize("capacity", [1, 2, 3, 4, 5, 31, 32, 33, 64, 100])
@pytest.mark.parametrize("make", [texts.most_states, texts.most_edges, texts.fibonacci_word])
def test_capacity(make, capacity):
    """N - 1 and N tokens fit whatever the text; token N + 1 is refused and changes nothing else."""
    text = make(max(capacity, 3))[:capacity]
    state = jax_sa.init(1, capacity)
    if capacity > 1:
        state = extend(state, [text[:-1]])
        assert_slot_equals(state, 0, reference_of(text[:-1], capacity))
    state = extend(state, [text[-1:]])
    automaton = reference_of(text)
    assert_slot_equals(state, 0, automaton)
    assert_draft_equals(lookup(state, max_draft=5), 0, automaton, 5)
    state, draft = extend_lookup(state, [[text[0]]], max_draft=5)
    assert_drafts_nothing(draft, 0)
    assert_drafts_nothing(lookup(state, max_draft=5), 0)
    assert_slot_equals(state, 0, automaton, status=jax_sa.Status.FULL)


@pytest.mark.parametrize("capacity", [1, 2, 7, 40])
def test_tokens_fill_what_room_there_is(capacity):
    text = texts.random_text(2, capacity + 3)
    state = extend(jax_sa.init(1, capacity), [text])
    automaton = reference_of(text[:capacity])
    assert_slot_equals(state, 0, automaton, status=jax_sa.Status.FULL)


LARGE = {
    "source-code": lambda n: (texts.source_code() * (n // 1000))[:n],
    "random-2": lambda n: texts.random_text(2, n),
    "random-128256": lambda n: texts.random_text(128_256, n),
    "most-states": texts.most_states,
    "most-edges": texts.most_edges,
}


def large_cases():
    """Two of the texts also where numbers of nodes need more than 16 bits."""
    for name in LARGE:
        for capacity in (8_192, 32_768, 131_072, 262_144):
            longest = 131_072 if name in ("source-code", "most-states") else 32_768
            marks = () if capacity <= longest else pytest.mark.slow
            yield pytest.param(name, capacity, marks=marks)


@pytest.mark.parametrize(("name", "capacity"), list(large_cases()))
def test_full_slots_lose_nothing(name, capacity):
    text = LARGE[name](capacity)
    state = extend(jax_sa.init(1, capacity), [text])
    automaton = reference_of(text)
    assert_slot_equals(state, 0, automaton)
    assert_draft_equals(lookup(state, max_draft=16), 0, automaton, 16)


def test_empty_slot_drafts_nothing():
    draft = lookup(jax_sa.init(2, 8), max_draft=3)
    assert_drafts_nothing(draft, 0)
    assert_drafts_nothing(draft, 1)
