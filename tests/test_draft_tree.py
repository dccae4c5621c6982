"""lookup_tree and extend_lookup_tree against the reference; masks against walks up the tree."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import texts
import tree_reference
from calls import int32, pad, reference_of
from pool_reference import Group
from reference import Automaton

import jax_sa

OPTIONS = ("max_nodes", "max_draft", "min_match", "max_match", "occurrence", "draft_factor")
OPTIONS = (*OPTIONS, "periodic", "threshold")
_lookup_tree = jax.jit(jax_sa.lookup_tree, static_argnames=OPTIONS)
_extend_lookup_tree = jax.jit(jax_sa.extend_lookup_tree, static_argnames=OPTIONS, donate_argnums=0)
LOOKUPS = [
    {"max_nodes": 16},
    {"max_nodes": 5, "occurrence": "first"},
    {"max_nodes": 16, "min_match": 3},
    {"max_nodes": 33, "max_match": 2},
    {"max_nodes": 1},
    {"max_nodes": 7, "max_draft": 3},
    {"max_nodes": 40, "draft_factor": 0.6},
    {"max_nodes": 12, "draft_factor": 2.0, "periodic": False},
    {"max_nodes": 64, "max_draft": 100, "periodic": False},
]


def nodes_of(tree, row):
    """The nodes of a row as the reference has them; asserts what the places beyond them hold."""
    tree = jax.device_get(tree)
    fields = (tree.tokens, tree.parents, tree.depth, tree.match_length, tree.source)
    nodes = list(zip(*(field[row].tolist() for field in fields), strict=True))
    length = int(tree.length[row])
    assert set(nodes[length:]) <= {(jax_sa.DRAFT_FILL, jax_sa.ROOT, 0, 0, 0)}
    return nodes[:length]


def expected(automaton, max_nodes, max_draft=None, draft_factor=None, growth=None, **options):
    """By the reference; `growth` are the followers of each token, and the text's last token."""
    depth = max_nodes if max_draft is None else min(max_draft, max_nodes)
    candidates = tree_reference.candidates(automaton, depth, **options)
    growth = None if growth is None else (*growth, depth)
    return tree_reference.tree(candidates, max_nodes, draft_factor, growth)


@pytest.mark.parametrize("name", texts.SMALL)
def test_every_token(name):
    text = texts.SMALL[name]
    state = jax_sa.init(1, len(text))
    automaton = Automaton(len(text))
    for n, token in enumerate(text):
        automaton.append(token)
        options = LOOKUPS[n % len(LOOKUPS)]
        state, tree = _extend_lookup_tree(state, int32([[token]]), int32([1]), **options)
        assert nodes_of(tree, 0) == expected(automaton, **options)
        if n % 5 == 0:
            assert nodes_of(_lookup_tree(state, **options), 0) == expected(automaton, **options)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("capacity", [64, 1024])
def test_with_a_pool(capacity, seed):
    """Texts of few tokens, so that all candidates differ, and a ring that wraps or does not."""
    random = np.random.default_rng(seed)
    pool, groups = jax_sa.init_pool(capacity, num_groups=2), [Group(capacity), Group(capacity)]
    text = random.integers(0, 5, 300).tolist()
    state, automaton = jax_sa.init(1, len(text)), Automaton(len(text))
    sources = set()
    for n, begin in enumerate(range(0, len(text), 3)):
        block = text[begin : begin + 3]
        for token in block:
            automaton.append(token)
        other = random.integers(0, 5, 30).tolist()
        pool = jax_sa.insert(pool, int32([other]), int32([30]), groups=int32([n % 2]))
        groups[n % 2].insert([other])
        options, seen = LOOKUPS[n % len(LOOKUPS)], n % 3 - 1
        state, tree = _extend_lookup_tree(
            state, int32([block]), int32([3]), pool=pool, groups=int32([seen]), **options
        )
        group = groups[seen] if seen >= 0 else None
        nodes = nodes_of(tree, 0)
        assert nodes == expected(automaton, group=group, **options)
        sources.add(frozenset(source for *_, source in nodes))
        again = _lookup_tree(state, pool=pool, groups=int32([seen]), **options)
        assert nodes_of(again, 0) == nodes
    assert {jax_sa.Source.OWN, jax_sa.Source.POOL} in sources


@pytest.mark.parametrize("threshold", [1, 4, 9])
@pytest.mark.parametrize("width", [1, 3, 40])
def test_with_neural_drafts(width, threshold):
    random = np.random.default_rng(width)
    text = texts.SMALL["random-3"]
    state, automaton = jax_sa.init(1, len(text)), Automaton(len(text))
    pool, group = jax_sa.init_pool(256), Group(256)
    other = random.integers(0, 3, 200).tolist()
    pool = jax_sa.insert(pool, int32([other]), int32([200]))
    group.insert([other])
    leaders = set()
    for n, token in enumerate(text):
        automaton.append(token)
        options, neural = LOOKUPS[n % len(LOOKUPS)], random.integers(0, 3, width).tolist()
        if n % 3 == 0:
            neural[random.integers(0, width)] = -1
        state, tree = _extend_lookup_tree(
            *(state, int32([[token]]), int32([1])),
            pool=pool,
            neural=int32([neural]),
            threshold=threshold,
            **options,
        )
        drafting = {"neural": neural, "threshold": threshold, **options}
        nodes = nodes_of(tree, 0)
        assert nodes == expected(automaton, group=group, **drafting)
        leaders.add(nodes[0][-1])
    assert leaders >= ({jax_sa.Source.NEURAL} if threshold > 1 else {jax_sa.Source.OWN})


def test_neural_drafts_of_a_text_that_lost_tokens():
    state = jax_sa.extend(jax_sa.init(1, 8), int32([[1, 2] * 5]), int32([10]))
    tree = _lookup_tree(state, max_nodes=4, neural=int32([[5, 6]]))
    assert nodes_of(tree, 0) == [(5, -1, 1, 0, 3), (6, 0, 2, 0, 3)]


def test_group_zero_is_seen_where_none_is_named():
    pool = jax_sa.insert(jax_sa.init_pool(64), int32([[1, 2, 3, 4, 5]]), int32([5]))
    state = jax_sa.extend(jax_sa.init(2, 8), int32([[2, 3], [7, 7]]), int32([2, 2]))
    tree = _lookup_tree(state, max_nodes=8, pool=pool)
    assert nodes_of(tree, 0) == [(4, -1, 1, 2, 2), (5, 0, 2, 2, 2)]
    assert {source for *_, source in nodes_of(tree, 1)} == {jax_sa.Source.OWN}


def test_a_pool_of_garbage_is_safe():
    """Whatever a pool holds, a tree holds what stands in its ring, or in the text."""
    random = np.random.default_rng(0)
    text = random.integers(-3, 3, 40).tolist()
    state = jax_sa.extend(jax_sa.init(1, 40), int32([text]), int32([40]))
    empty = jax_sa.init_pool(32)
    for _ in range(50):
        ring = random.integers(-3, 3, empty.ring.shape)
        pool = dataclasses.replace(
            empty,
            ring=int32(ring),
            head=int32(random.choice([-(2**31), -1, 5, 31, 32, 100, 2**31 - 1], 1)),
            table=int32(random.integers(-(2**31), 2**31, empty.table.shape)),
        )
        if random.random() < 0.5:
            pool = dataclasses.replace(pool, table=int32(random.integers(0, 120, pool.table.shape)))
        nodes = nodes_of(_lookup_tree(state, max_nodes=24, pool=pool), 0)
        assert {token for token, *_ in nodes} <= set(range(-3, 3)) and len(nodes) > 0


def test_the_leader_is_the_draft_of_lookup():
    text = [*texts.random_text(9, 80), *texts.random_text(9, 40)]
    state = jax_sa.extend(jax_sa.init(1, len(text)), int32([text]), int32([len(text)]))
    draft = jax_sa.lookup(state, max_draft=64, draft_factor=0.5)
    tree = jax_sa.lookup_tree(state, max_nodes=64, draft_factor=0.5)
    length = int(draft.length[0])
    assert 0 < length < tree.length[0]
    assert tree.tokens[0, :length].tolist() == draft.tokens[0, :length].tolist()
    assert tree.parents[0, :length].tolist() == list(range(-1, length - 1))


def test_rows_and_limits():
    """Rows share a slot, a row without one drafts nothing, and limits cut the depth."""
    some = [texts.SMALL[name] for name in ("random-2", "random-3", "fibonacci")]
    width = max(map(len, some))
    state = jax_sa.extend(
        jax_sa.init(3, width), int32(pad(some, width)), int32([len(text) for text in some])
    )
    slots, limits = [2, -1, 0, 2, 7, 1], [3, 9, 0, 99, 9, -4]
    tree = _lookup_tree(state, slots=int32(slots), limits=int32(limits), max_nodes=16)
    for row, (slot, limit) in enumerate(zip(slots, limits, strict=True)):
        if not 0 <= slot < 3 or limit <= 0:
            assert nodes_of(tree, row) == []
            continue
        automaton = reference_of(some[slot], width)
        assert nodes_of(tree, row) == expected(automaton, 16, max_draft=limit)
        assert len(nodes_of(tree, row)) > 0


def test_a_text_that_lost_tokens_drafts_nothing():
    state = jax_sa.extend(jax_sa.init(1, 8), int32([[1, 2] * 5]), int32([10]))
    assert state.status.tolist() == [jax_sa.Status.FULL]
    assert nodes_of(_lookup_tree(state, max_nodes=4), 0) == []


def random_trees(rows, max_nodes, vocabulary, seed=0):
    """Trees of any shape: the children of a node have different tokens."""
    random = np.random.default_rng(seed)
    fields = np.zeros((5, rows, max_nodes), np.int32)
    fields[1] = jax_sa.ROOT
    lengths = random.integers(0, max_nodes + 1, rows)
    for row in range(rows):
        taken = set()
        for node in range(lengths[row]):
            while True:
                parent = int(random.integers(-1, node))
                token = int(random.integers(0, vocabulary))
                if (parent, token) not in taken:
                    break
            taken.add((parent, token))
            depth = 1 if parent == -1 else int(fields[2, row, parent]) + 1
            fields[:, row, node] = token, parent, depth, random.integers(1, 9), 1
    return jax_sa.DraftTree(*map(jnp.asarray, fields), jnp.asarray(lengths, jnp.int32))


def path_to(tree, row, node):
    """The nodes from the root to this one."""
    path = []
    while node != jax_sa.ROOT:
        path.append(node)
        node = int(tree.parents[row, node])
    return path[::-1]


@pytest.mark.parametrize("max_nodes", [1, 2, 7, 16])
def test_mask(max_nodes):
    tree = random_trees(6, max_nodes, 20, seed=max_nodes)
    mask = np.asarray(jax.jit(jax_sa.tree_mask)(tree))
    tree = jax.device_get(tree)
    for row in range(6):
        assert mask[row, 0].tolist() == [True] + [False] * max_nodes
        for node in range(int(tree.length[row])):
            path = path_to(tree, row, node)
            assert len(path) == tree.depth[row, node]
            seen = {0, *(1 + i for i in path)}
            assert set(np.flatnonzero(mask[row, 1 + node])) == seen
        for place in range(1 + int(tree.length[row]), 1 + max_nodes):
            assert set(np.flatnonzero(mask[row, place])) == {0, place}


def test_mask_of_a_chain_is_causal():
    state = jax_sa.extend(jax_sa.init(1, 32), int32([[1] * 32]), int32([32]))
    tree = jax_sa.lookup_tree(state, max_nodes=9)
    assert tree.length.tolist() == [9]
    assert tree.depth.tolist() == [list(range(1, 10))]
    np.testing.assert_array_equal(jax_sa.tree_mask(tree)[0], np.tri(10, dtype=bool))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_nodes": 0}, ValueError, "max_nodes: expected an int in"),
        ({"max_nodes": 1.5}, TypeError, "max_nodes"),
        ({"max_nodes": 2**20}, ValueError, "max_nodes"),
        ({"max_nodes": 4, "max_draft": 0}, ValueError, "max_draft"),
        ({"max_nodes": 4, "draft_factor": 0.0}, ValueError, "draft_factor"),
        ({"max_nodes": 4, "limits": jnp.zeros(3, jnp.int32)}, ValueError, "limits"),
        ({"max_nodes": 4, "slots": jnp.zeros(3)}, TypeError, "slots"),
        ({"max_nodes": 4, "occurrence": "last"}, ValueError, "occurrence"),
        ({"max_nodes": 4, "threshold": 0}, ValueError, "threshold"),
        ({"max_nodes": 4, "neural": jnp.zeros((3, 2), jnp.int32)}, ValueError, "neural"),
        ({"max_nodes": 4, "groups": jnp.zeros(2, jnp.int32)}, ValueError, "groups"),
    ],
)
def test_errors(options, error, message):
    with pytest.raises(error, match=message):
        jax_sa.lookup_tree(jax_sa.init(2, 8), **options)
    if "slots" not in options:
        block = jnp.zeros((2, 1), jnp.int32), jnp.zeros(2, jnp.int32)
        with pytest.raises(error, match=message):
            jax_sa.extend_lookup_tree(jax_sa.init(2, 8), *block, **options)


def test_mask_errors():
    with pytest.raises(TypeError, match="tree: expected a jax_sa.DraftTree, got Draft"):
        jax_sa.tree_mask(jax_sa.lookup(jax_sa.init(2, 8), max_draft=2))
