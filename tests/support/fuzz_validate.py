"""Corrupts the slots of a state at random, and uses those that validate calls valid.

    python tests/support/fuzz_validate.py --seed 0 --slots 2500

Each such slot must hold the automaton of its text, and go on holding that of the longer text. A
crash or a loop without end is the caller's to see.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import texts
from calls import extend, extend_lookup, lookup, reference_of, reset
from inspection import ARRAYS, assert_slot_equals

import jax_sa

CAPACITY = 24


def valid_state(random, num_slots):
    rows = []
    for i in range(num_slots):
        vocabulary, length = random.integers(1, 5), random.integers(0, CAPACITY + 1)
        rows.append(texts.random_text(int(vocabulary), int(length), seed=i))
    state = extend(jax_sa.init(num_slots, CAPACITY, seed=int(random.integers(100))), rows)
    return jax.tree.map(np.array, state)


def word(random, old):
    """A word that may be in range, just out of it, or anything."""
    near = [old - 1, old + 1, old ^ 1, -old, 0, 1, -1, CAPACITY, CAPACITY + 1, 2 * CAPACITY]
    choices = [*near, random.integers(0, 5 * CAPACITY), random.integers(-(2**31), 2**31)]
    return np.int64(choices[random.integers(len(choices))]).astype(np.int32)


def change_words(random, state, slot):
    for _ in range(random.integers(1, 4)):
        leaf = getattr(state, ARRAYS[random.integers(len(ARRAYS))]).reshape(len(state.length), -1)
        used = np.flatnonzero(leaf[slot])
        anywhere = random.integers(leaf.shape[1])
        place = random.choice(used) if used.size and random.random() < 0.7 else anywhere
        leaf[slot, place] = word(random, leaf[slot, place])


def swap_words(random, state, slot):
    leaf = getattr(state, ARRAYS[random.integers(len(ARRAYS))]).reshape(len(state.length), -1)
    one, other = random.integers(leaf.shape[1], size=2)
    leaf[slot, [one, other]] = leaf[slot, [other, one]]


def cut_off(random, state, slot):
    leaf = getattr(state, ARRAYS[random.integers(len(ARRAYS))]).reshape(len(state.length), -1)
    leaf[slot, random.integers(leaf.shape[1]) :] = 0


def randomize(random, state, slot):
    leaf = getattr(state, ARRAYS[random.integers(len(ARRAYS))]).reshape(len(state.length), -1)
    high = [3, CAPACITY, 5 * CAPACITY, 2**31][random.integers(4)]
    leaf[slot] = random.integers(0, high, leaf.shape[1])


def take_anothers(random, state, slot):
    leaf = getattr(state, ARRAYS[random.integers(len(ARRAYS))])
    leaf[slot] = leaf[random.integers(len(leaf))]


def randomize_all(random, state, slot):
    for name in ARRAYS:
        leaf = getattr(state, name).reshape(len(state.length), -1)
        leaf[slot] = random.integers(-(2**31), 2**31, leaf.shape[1])


CHANGES = [change_words] * 6 + [swap_words, cut_off, randomize, take_anothers, randomize_all]


def corrupt(random, state):
    for slot in range(len(state.length)):
        CHANGES[random.integers(len(CHANGES))](random, state, slot)


def use(random, state):
    """A mixed run of ops on all slots; what was appended to each."""
    num_slots, appended = state.num_slots, [[] for _ in range(state.num_slots)]
    for call in range(12):
        blocks = random.integers(0, 4, (num_slots, 3)).tolist()
        for row, block in zip(appended, blocks, strict=True):
            row += block
        options = {"occurrence": ["recent", "first"][call % 2], "max_match": [None, 2, 5][call % 3]}
        if call % 2:
            state, _ = extend_lookup(state, blocks, max_draft=40, **options)
        else:
            state = extend(state, blocks)
            lookup(state, max_draft=40, **options)
        starts = jnp.asarray(random.integers(-3, CAPACITY, num_slots), jnp.int32)
        jax_sa.read_tokens(state, starts, length=9)
    return state, appended


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slots", type=int, default=2500)
    args = parser.parse_args()

    random = np.random.default_rng(args.seed)
    state = valid_state(random, args.slots)
    assert not np.any(jax_sa.validate(jax.tree.map(jnp.asarray, state)))
    corrupt(random, state)
    before = jax.tree.map(np.array, state)
    state = jax.tree.map(jnp.asarray, state)
    invalid = np.asarray(jax_sa.validate(state))
    state = reset(state, np.flatnonzero(invalid))
    assert not np.any(jax_sa.validate(state))

    state, appended = use(random, state)
    assert not np.any(jax_sa.validate(state))
    state = jax.tree.map(np.asarray, state)
    valid = np.flatnonzero(invalid == 0)
    # Some changes hit what is not read, or nothing; most must be seen.
    assert 0.05 < len(valid) / args.slots < 0.5, len(valid) / args.slots
    for slot in valid.tolist():
        text = before.tokens[slot, : before.length[slot]].tolist()
        text = (text + appended[slot])[:CAPACITY]
        expected = reference_of(text, CAPACITY)
        assert_slot_equals(state, slot, expected, status=int(state.status[slot]))


if __name__ == "__main__":
    main()
