"""Reads a slot's arrays back into an automaton, and compares it with the reference."""

import dataclasses
import itertools

import jax
import numpy as np

import jax_sa
from jax_sa.state import pack, unpack


@dataclasses.dataclass
class Slot:
    text: list
    status: int
    edges: dict  # (node, token) -> target, implied edges included
    solid: dict  # (node, token) -> bool
    link: dict
    length: dict
    first_end: dict
    recent_end: dict
    suffixes: list  # (node, length)


ARRAYS = tuple(unpack(jax_sa.init(1, 1)))
"""The names of a state's arrays."""


def slot_arrays(state, slot):
    return {name: np.asarray(array[slot]) for name, array in unpack(state).items()}


def with_arrays(state, **changes):
    """A state of NumPy arrays in which some are others."""
    return pack({**unpack(jax.tree.map(np.asarray, state)), **changes})


def read_slot(state, slot):
    arrays = slot_arrays(state, slot)
    capacity = state.max_seq_len
    n = int(arrays["length"])
    text = arrays["tokens"][:n].tolist()
    nodes = [*range(n + 1), *(capacity + 1 + i for i in range(int(arrays["num_clones"])))]
    clone = {node: arrays["clones"][node - capacity - 1] for node in nodes if node > capacity}
    length = {node: int(clone[node][0]) if node in clone else node for node in nodes}
    first_end = {node: int(clone[node][1]) if node in clone else node for node in nodes}
    recent = {node: int(arrays["nodes"][node, 1]) for node in nodes}
    edges = {(i, token): i + 1 for i, token in enumerate(text)}
    solid = {key: True for key in edges}
    explicit = _explicit_edges(arrays)
    assert not edges.keys() & explicit.keys(), "an implied edge was stored"
    for (node, token), target in explicit.items():
        edges[node, token] = target >> 1
        solid[node, token] = bool(target & 1)
    suffixes = [tuple(map(int, pair)) for pair in arrays["suffixes"]]
    roots = [i for i, (node, _) in enumerate(suffixes) if node == 0]
    assert all(pair == (0, 0) for pair in suffixes[roots[0] :]) if roots else True
    return Slot(
        text=text,
        status=int(arrays["status"]),
        edges=edges,
        solid=solid,
        link={node: int(arrays["nodes"][node, 0]) for node in nodes[1:]},
        length=length,
        first_end=first_end,
        recent_end={node: max(recent[node], first_end[node]) for node in nodes},
        suffixes=suffixes[: roots[0]] if roots else suffixes,
    )


def _explicit_edges(arrays):
    """The edges as the lists hold them, which must be the edges as the table holds them."""
    table = {
        (int(source) - 1, int(token)): int(target)
        for source, token, target, _ in arrays["edges"]
        if source
    }
    assert len(table) == np.count_nonzero(arrays["edges"][:, 0]), "an edge is stored twice"
    listed = {}
    for node, head in enumerate(arrays["heads"]):
        entry = int(head)
        while entry:
            source, token, target, entry = map(int, arrays["edges"][entry - 1])
            assert source == node + 1, "a list holds another node's edge"
            assert (source - 1, token) not in listed, "a list repeats an edge"
            listed[source - 1, token] = target
    assert listed == table
    return table


def assert_slot_equals(state, slot, automaton, status=0):
    """Same text, nodes, links, lengths, ends, edges and window as the reference's."""
    got = read_slot(state, slot)
    assert got.text == automaton.text
    assert got.status == status
    assert got.link == {node: link for node, link in automaton.link.items() if node != 0}
    assert got.length == automaton.length
    assert got.first_end == automaton.first_end
    assert got.recent_end == automaton.recent_end
    edges = {(node, t): q for node, out in automaton.edges.items() for t, q in out.items()}
    assert got.edges == edges
    assert got.solid == {
        (node, token): automaton.length[target] == automaton.length[node] + 1
        for (node, token), target in edges.items()
    }
    nodes = itertools.islice(automaton.repeated_suffixes(), 32)
    assert got.suffixes == [(node, automaton.length[node]) for node in nodes]
