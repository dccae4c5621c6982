"""One call of every op on a state, for tests that call each in many ways."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jax_sa

SLOTS, CAPACITY, WIDTH, ROWS, ALPHABET = 8, 2048, 6, 5, 3


def arguments(seed=0, num_slots=SLOTS):
    """A state with texts, and the arrays that the ops take beside it.

    A slot and its `others` are side by side, as copies on one device must be.
    """
    rng = np.random.default_rng(seed)

    def random(low, high, *shape):
        return jnp.asarray(rng.integers(low, high, shape), jnp.int32)

    slots = random(-2, num_slots + 2, ROWS)
    text = random(0, ALPHABET, num_slots, 40)
    lengths = random(0, 41, num_slots)
    state = jax_sa.init(num_slots, CAPACITY, seed=seed)
    return {
        "state": jax_sa.extend(state, text, lengths),
        "built": jax_sa.build_on_host(rng.integers(0, ALPHABET, 9), CAPACITY, seed=seed),
        "pool": jax_sa.insert(jax_sa.init_pool(64, num_groups=2), text[:2], lengths[:2]),
        "tokens": random(0, ALPHABET, num_slots, WIDTH),
        "lengths": random(-1, WIDTH + 2, num_slots),
        "limits": random(-1, WIDTH, num_slots),
        "groups": random(-1, 3, num_slots),
        "slots": slots,
        "others": jnp.where((slots >= 0) & (slots < num_slots), slots ^ 1, slots),
        "slot": random(-2, num_slots + 2),
        "row_tokens": random(0, ALPHABET, ROWS, WIDTH),
        "row_lengths": random(-1, WIDTH + 2, ROWS),
        "followers": jax_sa.Followers(random_followers(rng)),
    }


def random_followers(rng):
    """Of two groups, for all tokens of the texts but the last; not of every one are eight known."""
    known = rng.permuted(np.tile(np.arange(-3, 9), (2, ALPHABET - 1, 1)), axis=-1)
    return jnp.asarray(known[..., : jax_sa.NUM_FOLLOWERS], jnp.int32)


WITH_SLOTS = {"slots", "others", "slot", "row_tokens", "row_lengths", "built", "pool", "followers"}
"""The arguments that are not split as the slots are."""

DRAFT = functools.partial(dict, max_draft=4)

OPS = {
    "extend": lambda state, tokens, lengths: jax_sa.extend(state, tokens, lengths),
    "extend slots": lambda state, row_tokens, row_lengths, slots: jax_sa.extend(
        state, row_tokens, row_lengths, slots=slots
    ),
    "lookup": lambda state, limits: jax_sa.lookup(state, limits=limits, **DRAFT()),
    "lookup slots": lambda state, slots: jax_sa.lookup(state, slots=slots, **DRAFT()),
    "lookup pool": lambda state, pool, groups: jax_sa.lookup(
        state, pool=pool, groups=groups, **DRAFT()
    ),
    "lookup_after": lambda state, tokens, lengths, limits: jax_sa.lookup_after(
        state, tokens, lengths, limits=limits, **DRAFT()
    ),
    "lookup_after slots": lambda state, row_tokens, row_lengths, slots: jax_sa.lookup_after(
        state, row_tokens, row_lengths, slots=slots, **DRAFT()
    ),
    "lookup_after pool": lambda state, tokens, lengths, pool, groups: jax_sa.lookup_after(
        state, tokens, lengths, pool=pool, groups=groups, **DRAFT()
    ),
    "lookup slots pool": lambda state, slots, pool: jax_sa.lookup(
        state, slots=slots, pool=pool, **DRAFT()
    ),
    "extend_lookup": lambda state, tokens, lengths, limits: jax_sa.extend_lookup(
        state, tokens, lengths, limits=limits, **DRAFT()
    ),
    "extend_lookup slots": lambda state, row_tokens, row_lengths, slots: jax_sa.extend_lookup(
        state, row_tokens, row_lengths, slots=slots, **DRAFT()
    ),
    "extend_lookup pool": lambda state, tokens, lengths, pool: jax_sa.extend_lookup(
        state, tokens, lengths, pool=pool, **DRAFT()
    ),
    "lookup_tree": lambda state, limits: jax_sa.lookup_tree(state, max_nodes=6, limits=limits),
    "lookup_tree followers": lambda state, followers, groups: jax_sa.lookup_tree(
        state, max_nodes=12, followers=followers, groups=groups
    ),
    "lookup_tree pool followers": lambda state, pool, followers: jax_sa.lookup_tree(
        state, max_nodes=12, pool=pool, followers=followers
    ),
    "lookup_tree slots followers": lambda state, slots, followers: jax_sa.lookup_tree(
        state, max_nodes=12, slots=slots, followers=followers
    ),
    "extend_lookup_tree slots": lambda state, row_tokens, row_lengths, slots: (
        jax_sa.extend_lookup_tree(state, row_tokens, row_lengths, max_nodes=6, slots=slots)
    ),
    "extend_lookup_tree followers": lambda state, tokens, lengths, followers: (
        jax_sa.extend_lookup_tree(state, tokens, lengths, max_nodes=12, followers=followers)
    ),
    "reset": lambda state, slots: jax_sa.reset(state, slots),
    "copy_slots": lambda state, slots, others: jax_sa.copy_slots(state, slots, others),
    "insert": lambda state, built, slot: jax_sa.insert(state, built, slot),
    "read_tokens": lambda state, lengths: jax_sa.read_tokens(state, lengths, length=7),
    "read_tokens slots": lambda state, row_lengths, slots: jax_sa.read_tokens(
        state, row_lengths, length=7, slots=slots
    ),
    "validate": lambda state: jax_sa.validate(state),
}
"""By name, called with the arguments that their signatures name."""

UPDATING = [
    name
    for name in OPS
    if name.split()[0]
    in ("extend", "extend_lookup", "extend_lookup_tree", "reset", "copy_slots", "insert")
]

ADDING = [
    "lookup slots",
    "lookup_after slots",
    "lookup slots pool",
    "lookup_tree slots followers",
    "extend_lookup slots",
    "extend_lookup_tree slots",
    "read_tokens slots",
]
"""Ops whose results every device has a part of, which are added up."""


def names_of(op):
    function = OPS[op]
    return function.__code__.co_varnames[: function.__code__.co_argcount]


def pick(op, values):
    """The arguments of an op, in its order."""
    return [values[name] for name in names_of(op)]


def state_of(result):
    """The state among an op's results."""
    return result if isinstance(result, jax_sa.State) else result[0]


def equal(got, expected):
    jax.tree.map(
        functools.partial(np.testing.assert_array_equal, strict=True),
        jax.device_get(got),
        jax.device_get(expected),
    )
