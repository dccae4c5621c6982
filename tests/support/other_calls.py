"""One call of every op beside `op_calls.OPS`, which are those on a state."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from op_calls import ALPHABET, SLOTS, arguments

import jax_sa

ROWS, DRAFT, NODES = SLOTS, 4, 3
VOCABULARY = 2**15 + 1001
"""Of the followers: in the kernel, a thread's part of it has more tokens than a warp has lanes."""


class Call(NamedTuple):
    """An op, and what its arguments are."""

    run: Callable[..., Any]
    split: tuple[bool, ...]
    """For each argument, whether its first axis counts rows or groups that devices share."""
    updates: bool = False
    """Whether the result is the first argument, updated."""


def _insert(pool, tokens, lengths, groups):
    return jax_sa.insert(pool, tokens, lengths, groups=groups)


def _insert_slots(pool, state, slots, groups):
    return jax_sa.insert_slots(pool, state, slots, groups=groups)


def _note(followers, tokens, logits, groups):
    return jax_sa.note_followers(followers, tokens, logits, groups=groups)


def _copy(destinations, sources, rows):
    return jax_sa.fused_copy(destinations, sources, rows=rows, fill=3).destinations


def _expand(kv_lens, q_lens):
    options = {"total": 24, "return_offsets": True, "return_row_ids": True}
    expanded = jax_sa.expand_seqlens(kv_lens, q_lens, **options)
    return expanded.values, expanded.required[None], expanded.offsets, expanded.row_ids


def _accept_sampled(draft, logits):
    return jax_sa.accept_sampled(jax.random.key(1), draft, logits, 0.7, 2, 0.9)


def _accept_tree_sampled(tree, logits):
    return jax_sa.accept_tree_sampled(jax.random.key(1), tree, logits, 0.7, 2, 0.9)


def _move(entries, start, path):
    return jax_sa.move_entries(entries, start, path, axes=(0, 1))


def _share(draft):
    return jax_sa.share_budget(draft, 9)


def _pack(tokens, counts, draft, positions):
    return jax_sa.pack(tokens, counts, draft, positions, total=40)


GROUPS = (True, False, False, False)

OTHERS = {
    "insert pool": Call(_insert, GROUPS, updates=True),
    "insert_slots": Call(_insert_slots, GROUPS, updates=True),
    "note_followers": Call(_note, GROUPS, updates=True),
    "fused_copy": Call(_copy, (False, False, False), updates=True),
    "expand_seqlens": Call(_expand, (True, True)),
    "accept_greedy": Call(jax_sa.accept_greedy, (True, True)),
    "accept_sampled": Call(_accept_sampled, (True, True)),
    "accept_tree_greedy": Call(jax_sa.accept_tree_greedy, (True, True)),
    "accept_tree_sampled": Call(_accept_tree_sampled, (True, True)),
    "tree_mask": Call(jax_sa.tree_mask, (True,)),
    "move_entries": Call(_move, (True, True, True), updates=True),
    "merge_drafts": Call(jax_sa.merge_drafts, (True, True)),
    "share_budget": Call(_share, (True,)),
    "pack": Call(_pack, (True, True, True, True)),
}
"""By name."""


@jax.jit
def _look_up(state):
    return jax_sa.lookup(state, max_draft=DRAFT), jax_sa.lookup_tree(state, max_nodes=NODES)


@functools.cache
def other_arguments(op, seed=0):
    """The arguments of a call of that name."""
    rng = np.random.default_rng(seed)

    def random(low, high, *shape):
        return jnp.asarray(rng.integers(low, high, shape), jnp.int32)

    def logits(places):
        return jnp.asarray(rng.normal(size=(ROWS, places, ALPHABET)), jnp.float32)

    given = arguments(seed)
    state, tokens, lengths, slots = (given[n] for n in ("state", "tokens", "lengths", "slots"))
    if op in ("insert pool", "insert_slots"):
        pool = jax_sa.insert(jax_sa.init_pool(64, num_groups=ROWS), tokens, lengths)
        texts = (tokens, lengths) if op == "insert pool" else (state, slots)
        return pool, *texts, random(-1, ROWS + 1, len(texts[1]))
    if op == "note_followers":
        followers = jax_sa.Followers(random(-1, VOCABULARY, ROWS, VOCABULARY, 8))
        logits = jnp.asarray(rng.normal(size=(40, VOCABULARY)), jnp.float32)
        return followers, random(-1, 5, 40), logits, random(-1, ROWS + 1, 40)
    if op == "fused_copy":
        buffers = {"a": jnp.zeros((ROWS, 4)), "b": jnp.zeros((ROWS, 3), jnp.int32)}
        return buffers, {"a": jnp.ones((4, 4)), "b": random(0, 9, 4, 3)}, random(0, 5)
    if op == "expand_seqlens":
        return random(0, 9, ROWS), random(-1, 4, ROWS)
    draft, tree = _look_up(state)
    path = jnp.sort(random(0, 1 + NODES, ROWS, 1 + NODES), axis=1)
    entries = {"keys": jnp.asarray(rng.normal(size=(ROWS, 20, 2)), jnp.float32)}
    return {
        "accept_greedy": (draft, logits(1 + DRAFT)),
        "accept_sampled": (draft, logits(1 + DRAFT)),
        "accept_tree_greedy": (tree, logits(1 + NODES)),
        "accept_tree_sampled": (tree, logits(1 + NODES)),
        "tree_mask": (tree,),
        "move_entries": (entries, random(0, 9, ROWS), path),
        "merge_drafts": (draft, random(0, ALPHABET, ROWS, 2)),
        "share_budget": (draft,),
        "pack": (tokens, random(0, 3, ROWS), draft, random(0, 50, ROWS)),
    }[op]
