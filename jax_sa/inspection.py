"""The automaton of one slot, laid open for people and for tools: nodes, links, edges and window."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jax_sa._checks import check_int
from jax_sa.automaton import read_tokens, validate
from jax_sa.state import WINDOW, AnyState, Invalid, State, check_state


@dataclasses.dataclass(frozen=True)
class Automaton:
    """The suffix automaton of a text of n tokens, with C clones and E edges, in NumPy arrays.

    A node is the set of substrings that end at the same positions. Node 0 is the root, node i of
    1..n holds the text's first i tokens, and n + 1.. are the clones in the order they were made.
    """

    tokens: np.ndarray
    """int32[n] the text."""
    lengths: np.ndarray
    """int32[1 + n + C] tokens of the longest string of each node."""
    first_ends: np.ndarray
    """int32[1 + n + C] tokens of the text up to where the strings of each node first end."""
    links: np.ndarray
    """int32[1 + n + C] the suffix link of each node: where the longest of its suffixes that occurs
    elsewhere too belongs. -1 for the root."""
    edges: np.ndarray
    """int32[E, 3] by (source, token): source, token, target."""
    solid: np.ndarray
    """bool[E] whether an edge leads to a node that is one token longer."""
    window: np.ndarray
    """int32[W] nodes of the longest repeated suffixes of the text, longest first; at most
    `jax_sa.state.WINDOW` of them."""


def inspect_slot(state: AnyState, slot: int) -> Automaton:
    """The automaton of a slot.

    The text is read from the state, its automaton is built once more in plain Python, and
    `validate` says that the state holds just that one. So it takes time for each token, and does
    not depend on how the state lays out its arrays. It waits for the device; not for use in jit.

    Args:
      state: a `State` of S slots; it is only read.
      slot: in 0..S-1.

    Returns:
      The textbook automaton (Blumer et al. 1985) of the slot's text.

    Raises:
      ValueError: `slot` is out of range, or `validate` finds something wrong in it.
      TypeError: `state` is no `State`, or `slot` no int.
    """
    check_state(state)
    if not isinstance(state, State):
        raise TypeError(
            f"state: expected a jax_sa.State, which has nodes, got {type(state).__name__}"
        )
    slot = check_int("slot", slot, 0, state.num_slots - 1)
    invalid = Invalid(int(validate(state)[slot]))
    if invalid:
        raise ValueError(f"state: expected a valid automaton in slot {slot}, got {invalid!r}")
    rows = jnp.array([slot], jnp.int32)
    whole = read_tokens(state, jnp.zeros_like(rows), length=state.max_seq_len, slots=rows)
    text = np.asarray(whole[0])[: int(state.length[slot])]
    return _Builder(text.tolist()).automaton()


class _Builder:
    """The online construction, one token after the other."""

    def __init__(self, text: list[int]):
        self._text = text
        count = 1 + len(text)
        self._lengths = list(range(count))
        self._first_ends = list(range(count))
        self._links = [-1] * count
        self._edges: list[dict[int, int]] = [{} for _ in range(count)]
        for end, token in enumerate(text, start=1):
            self._append(end, token)

    def _append(self, end: int, token: int) -> None:
        """Appends the token that makes node `end`."""
        node = end - 1
        while node >= 0 and token not in self._edges[node]:
            self._edges[node][token] = end
            node = self._links[node]
        if node < 0:
            self._links[end] = 0
            return
        target = self._edges[node][token]
        if self._lengths[target] > self._lengths[node] + 1:
            target = self._clone(node, token, target)
        self._links[end] = target

    def _clone(self, node: int, token: int, target: int) -> int:
        """Splits the strings that reach `target` from `node` and its links off as a clone."""
        clone = len(self._lengths)
        self._lengths.append(self._lengths[node] + 1)
        self._first_ends.append(self._first_ends[target])
        self._edges.append(dict(self._edges[target]))
        self._links.append(self._links[target])
        self._links[target] = clone
        while node >= 0 and self._edges[node].get(token) == target:
            self._edges[node][token] = clone
            node = self._links[node]
        return clone

    def automaton(self) -> Automaton:
        lengths = np.array(self._lengths, np.int32)
        edges = [
            (source, token, target)
            for source, out in enumerate(self._edges)
            for token, target in sorted(out.items())
        ]
        edges_array = np.array(edges, np.int32).reshape(-1, 3)
        sources, targets = edges_array[:, 0], edges_array[:, 2]
        return Automaton(
            tokens=np.array(self._text, np.int32),
            lengths=lengths,
            first_ends=np.array(self._first_ends, np.int32),
            links=np.array(self._links, np.int32),
            edges=edges_array,
            solid=lengths[targets] == lengths[sources] + 1,
            window=np.array(self._window(), np.int32),
        )

    def _window(self) -> list[int]:
        nodes: list[int] = []
        node = self._links[len(self._text)]
        while node > 0 and len(nodes) < WINDOW:
            nodes.append(node)
            node = self._links[node]
        return nodes
