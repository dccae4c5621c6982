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
    suffixes: list  # (node, length, first end)


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
    edges, solid = _edges(arrays, text, length, first_end)
    suffixes = [tuple(map(int, suffix)) for suffix in arrays["suffixes"]]
    roots = [i for i, (node, *_) in enumerate(suffixes) if node == 0]
    assert all(suffix == (0, 0, 0) for suffix in suffixes[roots[0] :]) if roots else True
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


def _edges(arrays, text, length, first_end):
    """All edges as (node, token) -> target, and whether they are solid, from those stored."""
    stored = {}
    for end, token, target, longest in arrays["edges"].tolist():
        if end:
            assert longest not in stored.setdefault((end - 1, token), {}), "an edge is stored twice"
            stored[end - 1, token][longest] = (target >> 1, bool(target & 1))
    for i, token in enumerate(text):
        assert i not in stored.setdefault((i, token), {}), "an implied edge was stored"
        stored[i, token][i] = (i + 1, True)
    nodes = {}  # of a first end, the longest first
    for node in sorted(length, key=length.get, reverse=True):
        nodes.setdefault(first_end[node], []).append(node)
    edges, solid = {}, {}
    for (end, token), targets in stored.items():
        last = None
        for node in nodes[end]:
            found = targets.pop(length[node], None)
            assert found is None or last is None or found[0] != last, "an edge is stored needlessly"
            if found:
                last, edges[node, token], solid[node, token] = found[0], *found
            elif last is not None:
                edges[node, token], solid[node, token] = last, False
        assert not targets, "an edge is of no node"
    return edges, solid


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
    assert got.suffixes == [
        (node, automaton.length[node], automaton.first_end[node]) for node in nodes
    ]
