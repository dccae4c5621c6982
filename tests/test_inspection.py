"""inspect_slot: the automaton of a slot against the reference, and what it refuses."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import reference
import texts
from calls import extend

import jax_sa

CAPACITY = 48
TEXTS = {
    "empty": [],
    "one": [7],
    "run": [3] * CAPACITY,
    "most states": texts.most_states(CAPACITY),
    "most edges": texts.most_edges(CAPACITY),
    "periodic": texts.periodic_text(5, CAPACITY - 1),
    "fibonacci": texts.fibonacci_word(40),
    "binary": texts.random_text(2, CAPACITY),
    "extreme tokens": [2**31 - 1, -(2**31), 2**31 - 1, -(2**31), 0],
}


@pytest.fixture(scope="module")
def state():
    return extend(jax_sa.init(len(TEXTS), CAPACITY, seed=5), list(TEXTS.values()))


@pytest.mark.parametrize("name", TEXTS)
def test_is_that_of_the_reference(state, name):
    text = TEXTS[name]
    expected = reference.Automaton(CAPACITY)
    for token in text:
        expected.append(token)
    got = jax_sa.inspect_slot(state, list(TEXTS).index(name))
    nodes = [*range(len(text) + 1), *(CAPACITY + 1 + i for i in range(expected.num_clones))]
    number = {node: i for i, node in enumerate(nodes)} | {None: -1}
    assert got.tokens.tolist() == text
    assert got.lengths.tolist() == [expected.length[node] for node in nodes]
    assert got.first_ends.tolist() == [expected.first_end[node] for node in nodes]
    assert got.links.tolist() == [number[expected.link[node]] for node in nodes]
    edges = sorted(
        (number[node], token, number[target])
        for node in nodes
        for token, target in expected.edges[node].items()
    )
    assert got.edges.tolist() == [list(edge) for edge in edges]
    assert got.solid.tolist() == [
        got.lengths[target] == got.lengths[source] + 1 for source, _, target in edges
    ]
    window = [number[node] for node in expected.repeated_suffixes() if node != 0]
    assert got.window.tolist() == window[: jax_sa.state.WINDOW]


def test_refuses_what_validate_does(state):
    broken = dataclasses.replace(state, tokens=state.tokens.at[3, 2].add(1))
    jax_sa.inspect_slot(broken, 2)
    with pytest.raises(ValueError, match=r"^state: expected a valid automaton in slot 3, got <Inv"):
        jax_sa.inspect_slot(broken, 3)


@pytest.mark.parametrize("slot", [-1, len(TEXTS)])
def test_slot_out_of_range(state, slot):
    with pytest.raises(ValueError, match=rf"^slot: expected an int in \[0, 8\], got {slot}$"):
        jax_sa.inspect_slot(state, slot)


def test_needs_an_automaton():
    scan = jax_sa.init(1, 8, index="scan")
    with pytest.raises(TypeError, match=r"^state: expected a jax_sa\.State, which has nodes, got"):
        jax_sa.inspect_slot(scan, 0)


def test_arrays_are_of_numpy(state):
    got = jax_sa.inspect_slot(state, 4)
    for field in dataclasses.fields(got):
        assert type(getattr(got, field.name)) is np.ndarray, field.name
        assert getattr(got, field.name).dtype == (bool if field.name == "solid" else jnp.int32)
