"""The example's attention, plain and as a kernel, against one token and one head at a time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_sa
from jax_sa.llama import attention, attention_kernel

LAYERS, PAGES, GROUPS, PAGE_SIZE = 3, 40, 2, 8
TABLE = np.full((4, 12), PAGES, np.int32)  # of rows that have 12, 5, 0 and 9 pages
for row, (start, stop) in enumerate([(1, 13), (13, 18), (18, 18), (18, 27)]):
    TABLE[row, : stop - start] = np.random.RandomState(row).permutation(np.arange(start, stop))
BLOCKS = {  # of rows and positions
    "one token a row": ([0, 1, 3], [95, 39, 0]),
    "drafts": ([0] * 9 + [1] + [3] * 6, [*range(20, 29), 39, *range(66, 72)]),
    "one row": ([3] * 7, list(range(7))),
    "padding": ([1, 1, 4, 4, 4], [7, 8, 0, 0, 0]),
    "padding between": ([0, 0, 9, 1, -1, 3, 3], [3, 4, 0, 30, 5, 70, 71]),
    "prompts": ([0] * 90 + [3] * 50, [*range(90), *range(10, 60)]),
}


# Of the block "drafts" as trees: the token that each node follows; the others are no nodes.
PARENTS = {1: 0, 2: 1, 3: 2, 4: 0, 5: 4, 6: 1, 7: 6, 8: 4, 12: 11, 13: 11, 14: 13, 15: 12}


def tree_of_drafts():
    """The `TreeBlock` of these, and the tokens that each token attends to of its row's tree."""
    rows, positions = BLOCKS["drafts"]
    start, nodes = np.array(positions) + 1, np.zeros((len(rows), 9), bool)
    seen = {}
    for token in range(len(rows)):
        root = up = token
        seen[token] = set()
        while up in PARENTS:
            seen[token].add(up)
            root = up = PARENTS[up]
        if token in PARENTS:
            start[token] = positions[root] + 1
            for node in seen[token]:
                nodes[token, positions[node] - start[token]] = True
    text_positions = start - 1 + nodes.sum(axis=1)
    fields = (jnp.asarray(text_positions, jnp.int32), jnp.asarray(start, jnp.int32))
    return jax_sa.TreeBlock(*fields, jnp.asarray(nodes)), seen


def draw(seed, *shape):
    return jnp.asarray(np.random.RandomState(seed).normal(size=shape).astype(np.float32))


def cache(seed, head_dim):
    return draw(seed, LAYERS, PAGES, GROUPS, PAGE_SIZE, head_dim)


def make_block(name, shared, keys, *, width=None, tree=None):
    rows, positions = (jnp.asarray(x, jnp.int32) for x in BLOCKS[name])
    memory = ((keys,), (keys,))
    block = attention.make_block(rows, positions, jnp.asarray(TABLE), memory, shared, tree=tree)
    if width is None:
        return block
    is_valid = (rows >= 0) & (rows < len(TABLE))
    most = min(rows.size, len(TABLE))
    most += (rows.size - most) // width
    tiles, tile = attention._tiles(rows, positions, is_valid, width, most)
    return dataclasses.replace(block, tiles=tiles, tile=tile, width=width)


def expected(name, q, keys, values, layer, hidden=None):
    """The slow, obvious attention; None for padding."""
    q, keys, values = map(np.asarray, (q, keys, values))
    for token, (row, position) in enumerate(zip(*BLOCKS[name], strict=True)):
        out = np.zeros(q.shape[1:], np.float32)
        if not 0 <= row < len(TABLE):
            yield None
            continue
        places = [
            (TABLE[row, p // PAGE_SIZE], p % PAGE_SIZE)
            for p in range(position + 1)
            if hidden is None or p not in hidden[token]
        ]
        for group in range(q.shape[1]):
            own_keys = np.stack([keys[layer, page, group, place] for page, place in places])
            own_values = np.stack([values[layer, page, group, place] for page, place in places])
            for head in range(q.shape[2]):
                scores = own_keys @ q[token, group, head] / np.sqrt(q.shape[-1])
                share = np.exp(scores - scores.max())
                out[group, head] = share @ own_values / share.sum()
        yield out


def assert_as_expected(got, name, q, keys, values, layer, hidden=None):
    for token, wanted in enumerate(expected(name, q, keys, values, layer, hidden)):
        if wanted is not None:
            np.testing.assert_allclose(got[token], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [None, 1, 4])
@pytest.mark.parametrize("name", BLOCKS)
def test_plain_attention(name, width):
    keys, values, q = cache(1, 8), cache(2, 8), draw(3, len(BLOCKS[name][0]), GROUPS, 2, 8)
    block = make_block(name, 2, keys, width=width)
    layer = jnp.asarray(1, jnp.int32)
    with jax.default_matmul_precision("highest"):
        got = jax.jit(attention.plain_attention)(q, keys, values, layer, block)
    assert_as_expected(got, name, q, keys, values, 1)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("shared", [1, 3])
@pytest.mark.parametrize("name", BLOCKS)
def test_the_kernel(name, shared, parts):
    keys, values = cache(1, 16), cache(2, 16)
    q = draw(3, len(BLOCKS[name][0]), GROUPS, shared, 16)
    mean = 64 if name == "prompts" else 1
    width = attention_kernel.tile_width(mean, shared)
    assert width * shared <= (64 if name == "prompts" else 16)
    block = make_block(name, shared, keys, width=width)
    layer = jnp.asarray(2, jnp.int32)
    got = attention_kernel.paged_attention(
        q, keys, values, layer, block, parts=parts, interpret=True
    )
    assert_as_expected(got, name, q, keys, values, 2)


def hidden_places(seen):
    """Of each token the places of its row's nodes that it does not attend to."""
    rows, positions = BLOCKS["drafts"]
    return {
        token: {positions[n] for n in PARENTS if rows[n] == rows[token] and n not in seen[token]}
        for token in seen
    }


@pytest.mark.parametrize("width", [None, 1, 4])
def test_plain_attention_to_trees(width):
    tree, seen = tree_of_drafts()
    keys, values, q = cache(1, 8), cache(2, 8), draw(3, len(seen), GROUPS, 2, 8)
    block = make_block("drafts", 2, keys, width=width, tree=tree)
    layer = jnp.asarray(1, jnp.int32)
    with jax.default_matmul_precision("highest"):
        got = jax.jit(attention.plain_attention)(q, keys, values, layer, block)
    assert_as_expected(got, "drafts", q, keys, values, 1, hidden_places(seen))


def begin_earlier(tree, entries):
    """The same, but so many of the row's entries before the nodes count as nodes, which all see."""
    start = jnp.maximum(tree.start - entries, 0)
    nodes = jnp.ones((tree.nodes.shape[0], entries), bool)
    nodes = jnp.concatenate([nodes, jnp.zeros_like(tree.nodes)], axis=1)
    index = jnp.arange(tree.nodes.shape[1])[None] + (tree.start - start)[:, None]
    tokens = jnp.arange(nodes.shape[0])[:, None]
    nodes &= jnp.arange(nodes.shape[1])[None] < (tree.start - start)[:, None]
    return dataclasses.replace(tree, start=start, nodes=nodes.at[tokens, index].set(tree.nodes))


@pytest.mark.parametrize("earlier", [0, 23, 60])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("shared", [1, 3])
def test_the_kernel_attends_to_trees(shared, parts, earlier):
    """Of 9, 32 and 69 nodes: of less than a word of bits, of one, and of several."""
    tree, seen = tree_of_drafts()
    tree = begin_earlier(tree, earlier)
    keys, values, q = cache(1, 16), cache(2, 16), draw(3, len(seen), GROUPS, shared, 16)
    width = attention_kernel.tile_width(1, shared)
    block = make_block("drafts", shared, keys, width=width, tree=tree)
    layer = jnp.asarray(2, jnp.int32)
    got = attention_kernel.paged_attention(
        q, keys, values, layer, block, parts=parts, interpret=True
    )
    assert_as_expected(got, "drafts", q, keys, values, 2, hidden_places(seen))


@pytest.mark.parametrize("name", BLOCKS)
def test_a_token_is_written_to_its_own_place_alone(name):
    """Padding writes nothing, and no row writes to another's pages."""
    keys = cache(1, 8)
    new = draw(4, len(BLOCKS[name][0]), GROUPS, 8)
    block = make_block(name, 1, keys)
    written = np.array(attention.write(keys, jnp.asarray(1, jnp.int32), block, new))
    wanted = np.array(keys)
    for token, (row, position) in enumerate(zip(*BLOCKS[name], strict=True)):
        if 0 <= row < len(TABLE):
            wanted[1, TABLE[row, position // PAGE_SIZE], :, position % PAGE_SIZE] = new[token]
    np.testing.assert_array_equal(written, wanted)


def test_what_has_no_page_is_not_written():
    keys = cache(1, 8)
    rows, positions = (jnp.asarray(x, jnp.int32) for x in ([1, 1, 2, 3], [40, 200, 0, 72]))
    block = attention.make_block(rows, positions, jnp.asarray(TABLE), ((keys,), (keys,)), 1)
    written = attention.write(keys, jnp.asarray(0, jnp.int32), block, draw(4, 4, GROUPS, 8))
    np.testing.assert_array_equal(written, keys)
