"""The chances of a tree's nodes: of a chain those of a draft; of siblings, what is left."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_draft_tree import nodes_of, path_to, random_trees
from test_verify_tree import chain_of

import jax_sa
from jax_sa import budget, tree_budget


def draft(match_length, length, source=1):
    rows = len(match_length)
    tokens = jnp.zeros((rows, 6), jnp.int32)
    fields = (match_length, match_length, [source] * rows)
    match, end, sources = (jnp.asarray(field, jnp.int32) for field in fields)
    return jax_sa.Draft(tokens, jnp.asarray(length, jnp.int32), match, end, sources)


def test_a_chain_is_a_draft():
    given = draft([1, 2, 5, 9, 40], [6, 3, 0, 6, 1])
    strain = jnp.asarray([1.0, 0.5, 1.0, 2.0, 1.3], jnp.float32)
    tree = chain_of(given)
    np.testing.assert_allclose(
        tree_budget.survival(tree, strain), budget.survival(given, strain), rtol=1e-6
    )
    record = budget.Record(jnp.arange(5, dtype=jnp.float32), jnp.ones(5, jnp.float32))
    confirmed = jnp.asarray([0, 3, 0, 4, 0], jnp.int32)
    path = jnp.broadcast_to(jnp.arange(7, dtype=jnp.int32)[None], (5, 7))
    got = tree_budget.update_record(record, tree, path, confirmed)
    wanted = budget.update_record(record, given, confirmed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, wanted)


def test_siblings_share_what_is_left():
    """Two children of the root after matches of 8 and 4 tokens, and a child of the second."""
    fields = ([7, 8, 9], [-1, -1, 1], [1, 1, 2], [8, 4, 4], [1, 2, 3])
    arrays = [jnp.asarray([field], jnp.int32) for field in fields]
    tree = jax_sa.DraftTree(*arrays, jnp.full(1, 3, jnp.int32))
    first, second = 1 - 1.6 / 9, 1 - 2.2 / 5
    below = 1 - 1.6 / (3 + 2)  # neural: as after a match of 3
    wanted = [first, (1 - first) * second, (1 - first) * second * below]
    got = tree_budget.survival(tree, jnp.ones(1, jnp.float32))[0]
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_followers_have_a_chance_by_their_rank():
    """Of the text's last token those of rank 1 and 3, and one of rank 2 below the first."""
    fields = ([7, 8, 9], [-1, -1, 0], [1, 1, 2], [1, 3, 2], [4, 4, 4])
    arrays = [jnp.asarray([field], jnp.int32) for field in fields]
    tree = jax_sa.DraftTree(*arrays, jnp.full(1, 3, jnp.int32))
    first, second, third = (0.36 / (1 + 1.6 * r) for r in range(3))
    wanted = [first, (1 - first) * third, first * second]
    got = tree_budget.survival(tree, jnp.ones(1, jnp.float32))[0]
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_the_likeliest_nodes_are_a_tree(seed):
    """Whatever the width, what is kept is the nodes of largest chance, with their parents."""
    tree = random_trees(20, 12, 9, seed=seed)
    chances = tree_budget.survival(tree, jnp.full(20, 0.8, jnp.float32))
    ranks = tree_budget.rank_in_row(chances)
    assert sorted(tree_budget.rank(chances).ravel().tolist()) == list(range(240))
    for width in (0, 1, 5, 12):
        kept = (ranks < width) & (chances > 0)
        small = tree_budget.keep(tree, kept)
        host = jax.device_get(tree)
        for row in range(20):
            nodes = [i for i in range(12) if kept[row, i]]
            texts = sorted(tuple(host.tokens[row, path_to(host, row, i)]) for i in nodes)
            after = nodes_of(small, row)
            assert len(after) == len(nodes) == min(width, int((chances[row] > 0).sum()))
            paths = []
            for i, (token, parent, depth, _, _) in enumerate(after):
                assert parent < i
                paths.append((*(paths[parent] if parent >= 0 else ()), token))
                assert depth == len(paths[-1])
            assert sorted(paths) == texts


@pytest.mark.parametrize("seed", range(3))
def test_rank_across_rows_keeps_parents_first(seed):
    tree = random_trees(8, 10, 9, seed=seed)
    ranks = tree_budget.rank(tree_budget.survival(tree, jnp.ones(8, jnp.float32)))
    for row in range(8):
        for node in range(int(tree.length[row])):
            parent = int(tree.parents[row, node])
            assert parent == jax_sa.ROOT or ranks[row, parent] < ranks[row, node]


@pytest.mark.parametrize("rows", [1, 30, tree_budget.MOST_COMPARED // 10 + 1])
def test_ranks_are_those_of_a_stable_sort(rows):
    """Of few nodes, which are compared, and of many, which are sorted; of equal ones the first."""
    chances = np.random.default_rng(rows).integers(0, 5, (rows, 10)).astype(np.float32) / 4
    ranks = np.asarray(tree_budget.rank(jnp.asarray(chances)))
    order = np.argsort(-chances.ravel(), kind="stable")
    np.testing.assert_array_equal(np.argsort(ranks.ravel()), order)


def test_neural_drafts_count_alike_where_trees_are_built_and_where_they_are_weighed():
    header = (pathlib.Path(__file__).parents[1] / "ffi" / "draft_tree.h").read_text()
    (length,) = re.findall(r"kNeuralMatch = (\d+);", header)
    assert int(length) == budget.NEURAL_MATCH_LENGTH
