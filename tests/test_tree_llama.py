"""The example's model reads trees: every path like a text of its own, dense and in pages."""

import functools

import jax
import jax.numpy as jnp
import llama_families as families
import numpy as np
import pytest
from test_draft_tree import path_to, random_trees
from test_llama import (
    CLOSE,
    ROWS,
    TEXT,
    directory,  # noqa: F401  a fixture
    empty_cache,
    exact,  # noqa: F401  a fixture
    plain_decoding,
)

import jax_sa
from jax_sa.llama import checkpoint, drafter, model, paged
from jax_sa.tree_block import tree_block

NODES = 7


@pytest.fixture
def loaded(directory):  # noqa: F811
    return checkpoint.load(directory, jnp.float32)


def test_the_logits_of_a_node_are_those_of_its_path(loaded):
    settings, params = loaded
    tree = random_trees(ROWS, NODES, settings.vocab_size, seed=2)
    before = 20
    apply = jax.jit(model.apply, static_argnums=0)

    def read(tokens, tree=None):
        _, cache = apply(settings, params, families.TOKENS[:, :before], empty_cache(settings))
        cache = jax_sa.decoder._advance(cache, jnp.full(ROWS, before, jnp.int32))
        block = None if tree is None else tree_block(tree, cache.length, jnp.zeros(ROWS, jnp.int32))
        return np.asarray(apply(settings, params, tokens, cache, block)[0])

    last = jnp.asarray(families.TOKENS[:, before : before + 1])
    logits = read(jnp.concatenate([last, tree.tokens], axis=1), tree)
    tree = jax.device_get(tree)
    assert tree.length.sum() > NODES
    for row in range(ROWS):
        for node in range(int(tree.length[row])):
            path = path_to(tree, row, node)
            text = np.zeros((ROWS, 1 + NODES), np.int32)
            text[row, : 1 + len(path)] = [last[row, 0], *tree.tokens[row, path]]
            wanted = read(jnp.asarray(text))
            np.testing.assert_allclose(logits[row, 1 + node], wanted[row, len(path)], **CLOSE)


@pytest.mark.parametrize("mtp_tokens", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_generation_with_trees_equals_plain_decoding(loaded, mtp_tokens):
    settings, params = loaded
    lengths = np.array([30, 11], np.int32)
    decoder = jax_sa.Decoder(
        functools.partial(model.apply, settings),
        tree_nodes=NODES,
        draft_widths=(2, NODES),
        drafter=drafter.mtp_drafter(settings, mtp_tokens) if mtp_tokens else None,
    )
    done = decoder.generate(
        params,
        jnp.asarray(families.TOKENS[:, :30]),
        jnp.asarray(lengths),
        empty_cache(settings, mtp=mtp_tokens > 0),
        max_new_tokens=40,
        state=jax_sa.init(ROWS, TEXT),
        costs=jnp.ones(len(decoder.widths()) + 2 * (mtp_tokens > 0)),
    )
    for row, length in enumerate(lengths):
        expected = plain_decoding(settings, params, families.TOKENS[row, :length], 40)
        assert np.asarray(done.tokens[row]).tolist() == expected
    assert int(done.accepted.sum()) > 0


def test_packed_generation_with_trees_equals_plain_decoding(loaded):
    settings, params = loaded
    lengths = np.array([30, 11, 17], np.int32)
    prompts = np.concatenate([families.TOKENS[:, :30], families.TOKENS[:1, 5:35]])
    decoder = jax_sa.PackedDecoder(
        functools.partial(paged.apply_packed, settings), budget=12, tree_nodes=NODES
    )
    cache = paged.init_packed_cache(settings, ROWS, 2 * 7, 16, TEXT, jnp.float32)
    done = decoder.generate(
        params,
        jnp.asarray(prompts),
        jnp.asarray(lengths),
        cache,
        rows=ROWS,
        max_new_tokens=40,
        state=jax_sa.init(ROWS, TEXT),
        costs=jnp.ones(len(decoder.widths(ROWS))),
    )
    for row, length in enumerate(lengths):
        expected = plain_decoding(settings, params, prompts[row, :length], 40)
        assert np.asarray(done.tokens[row]).tolist() == expected
    assert int(done.accepted.sum()) > 0
