"""The state of the index that scans: a text per slot, and how well it repeats at each distance."""

import dataclasses

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScanState:
    """`S` texts of at most `N` tokens each, each compared with itself at every distance.

    S: slots; N: `max_seq_len`.

    Every array is int32, and every array of an empty slot is zeros. Ops take the state and return
    it updated in place where it is donated.

    A distance k is how many tokens before the text's own end an earlier occurrence of its suffix
    ends. To append token c to a text of n tokens sets, for all k in 1..n at once,

        match[k - 1] = match[k - 1] + 1 if tokens[n - k] == c else 0

    The longest suffix that occurred before is as long as the largest `match`; where several
    distances have it, the smallest leads to the most recent occurrence, the largest to the first.
    The ends of a text's matches are, in other words, the Z-function of the reversed text.
    """

    length: jax.Array
    """[S] tokens in the text."""
    status: jax.Array
    """[S] bits of `Status`."""
    tokens: jax.Array
    """[S, N] the text."""
    match: jax.Array
    """[S, N] by distance - 1: the tokens of the longest suffix of the text that also ends so many
    tokens before the text's end; 0 for distances of `length` and more."""

    @property
    def num_slots(self) -> int:
        """S, the number of slots."""
        return self.length.shape[0]

    @property
    def max_seq_len(self) -> int:
        """N, the tokens that a slot has room for."""
        return self.tokens.shape[1]


def scan_slot_shapes(max_seq_len: int) -> dict[str, tuple[int, ...]]:
    """The shapes of one slot's arrays, by field of `ScanState`."""
    return {"length": (), "status": (), "tokens": (max_seq_len,), "match": (max_seq_len,)}
