# pyright: strict
"""A user's program as a type checker sees it; `.ci/run` checks it, and nothing runs it."""

from typing import Any, assert_type

import jax

import jax_sa


def start(prompts: jax.Array, lengths: jax.Array) -> jax_sa.State:
    """An op returns a state of the index that it was given."""
    state = jax_sa.init(2, 1024)
    assert_type(state, jax_sa.State)
    scanned = jax_sa.init(2, 1024, index="scan")
    assert_type(jax_sa.extend(scanned, prompts, lengths), jax_sa.ScanState)
    assert_type(jax_sa.init(2, 1024, index="auto"), jax_sa.State | jax_sa.ScanState)
    return jax_sa.extend(state, prompts, lengths)


def step(state: jax_sa.State, logits: jax.Array, key: jax.Array) -> jax_sa.State:
    draft = jax_sa.lookup(state, max_draft=4)
    assert_type(draft, jax_sa.Draft)
    assert_type(jax_sa.share_budget(draft, 6), jax_sa.Draft)
    assert_type(jax_sa.accept_sampled(key, draft, logits, 0.7, top_p=0.9), jax_sa.Accepted)
    accepted = jax_sa.accept_greedy(draft, logits)
    assert_type(accepted.tokens, jax.Array)
    state, draft = jax_sa.extend_lookup(state, accepted.tokens, accepted.length, max_draft=4)
    assert_type(draft.match_length, jax.Array)
    return state


def step_tree(state: jax_sa.State, logits: jax.Array) -> jax_sa.State:
    tree = jax_sa.lookup_tree(state, max_nodes=8)
    accepted, path = jax_sa.accept_tree_greedy(tree, logits)
    assert_type(path, jax.Array)
    return jax_sa.extend(state, accepted.tokens, accepted.length)


def step_grown(
    state: jax_sa.State, followers: jax_sa.Followers, read: jax.Array, logits: jax.Array
) -> tuple[jax_sa.DraftTree, jax_sa.Followers]:
    followers = jax_sa.note_followers(followers, read, logits)
    assert_type(followers.tokens, jax.Array)
    assert_type(followers.vocabulary, int)
    assert_type(jax_sa.init_followers(32_000, num_groups=2), jax_sa.Followers)
    return jax_sa.lookup_tree(state, max_nodes=8, followers=followers), followers


def model(params: dict[str, jax.Array], tokens: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
    return params["embedding"][tokens], cache


def generate(params: dict[str, jax.Array], prompts: jax.Array, lengths: jax.Array) -> jax.Array:
    """Models are functions with parameters and caches of their own types."""
    decoder = jax_sa.Decoder(model, max_draft=4)
    generation = decoder.generate(params, prompts, lengths, None, max_new_tokens=16)
    assert_type(generation, jax_sa.Generation)
    return generation.tokens


def fill(pool: jax_sa.Pool, state: jax_sa.State, slots: jax.Array, texts: jax.Array) -> None:
    assert_type(jax_sa.insert_slots(pool, state, slots), jax_sa.Pool)
    assert_type(jax_sa.insert(pool, texts, slots), jax_sa.Pool)
    assert_type(jax_sa.insert(state, jax_sa.init(1, 1024), 0), jax_sa.State)
