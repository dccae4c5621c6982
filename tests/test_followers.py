"""note_followers, and the followers in trees, against the reference."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import texts
import tree_reference
from calls import int32
from reference import Automaton
from test_draft_tree import LOOKUPS, OPTIONS, expected, nodes_of

import jax_sa

_note = jax.jit(jax_sa.note_followers, donate_argnums=0)
_lookup_tree = jax.jit(jax_sa.lookup_tree, static_argnames=OPTIONS)
_extend_lookup_tree = jax.jit(jax_sa.extend_lookup_tree, static_argnames=OPTIONS, donate_argnums=0)


def noted(tables, tokens, logits, groups):
    """The followers [G, V, 8] after a call, by the reference."""
    tables = np.array(tables)
    for token, row, group in zip(tokens, np.asarray(logits, np.float32), groups, strict=True):
        if 0 <= token < tables.shape[1] and 0 <= group < tables.shape[0]:
            tables[group, token] = tree_reference.followers_of(row.tolist())
    return tables


def make_logits(kind, places, vocabulary, random):
    """Ties, numbers that are none, infinities, both zeros, neighbours, or few that are possible."""
    logits = random.normal(size=(places, vocabulary)).astype(np.float32)
    if kind == "ties":
        logits = random.integers(-1, 2, logits.shape).astype(np.float32)
    elif kind == "zeros":
        logits = random.choice(np.float32([0.0, -0.0]), logits.shape)
    elif kind == "odd":
        odd = np.float32([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, -1e-45, 0.0])
        logits = random.choice(odd, logits.shape)
    elif kind == "few":
        logits[random.random(logits.shape) < 0.999] = -np.inf
    return logits


@pytest.mark.parametrize("kind", ["plain", "ties", "zeros", "odd", "few"])
@pytest.mark.parametrize("vocabulary", [1, 7, 8, 33, 1025, 5000])
def test_note(vocabulary, kind):
    random = np.random.default_rng(vocabulary)
    followers = jax_sa.init_followers(vocabulary, num_groups=2)
    tables = np.full(followers.tokens.shape, -1)
    for places in (1, 2, 40):
        logits = make_logits(kind, places, vocabulary, random)
        tokens = random.integers(-1, vocabulary + 1, places)
        groups = random.integers(-1, 3, places)
        followers = _note(followers, int32(tokens), jnp.asarray(logits), groups=int32(groups))
        tables = noted(tables, tokens, logits, groups)
        np.testing.assert_array_equal(followers.tokens, tables)


def test_the_last_place_of_a_token_counts():
    logits = jnp.asarray(np.eye(4, 6)[[0, 1, 2, 3, 1]])
    followers = _note(jax_sa.init_followers(6), int32([5, 2, 5, 0, 5]), logits)
    assert followers.tokens[0, :, 0].tolist() == [3, -1, 1, -1, -1, 1]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_logits(dtype):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(9, 300)), dtype)
    followers = _note(jax_sa.init_followers(300), jnp.arange(9), logits)
    wanted = [tree_reference.followers_of(row) for row in logits.astype(jnp.float32).tolist()]
    assert followers.tokens[0, :9].tolist() == wanted


def test_nothing_to_note():
    followers = _note(jax_sa.init_followers(3), jnp.zeros(0, jnp.int32), jnp.zeros((0, 3)))
    assert (np.asarray(followers.tokens) == jax_sa.init_followers(3).tokens).all()


def test_vmapped():
    """Tables of their own, and one table for all."""
    random = np.random.default_rng(1)
    tokens, logits = random.integers(0, 20, (3, 5)), random.normal(size=(3, 5, 20))
    tables = jnp.stack([jax_sa.init_followers(20).tokens] * 3)
    note = jax.vmap(lambda table, *read: jax_sa.note_followers(jax_sa.Followers(table), *read))
    found = note(tables, int32(tokens), jnp.asarray(logits, jnp.float32)).tokens
    for nth in range(3):
        alone = noted(tables[nth], tokens[nth], logits[nth], [0] * 5)
        np.testing.assert_array_equal(found[nth], alone)

    states = jax.vmap(lambda _: jax_sa.init(1, 8))(jnp.arange(3))
    blocks = int32(tokens[:, None, :4])
    options = {"max_nodes": 9, "followers": jax_sa.Followers(found[0])}
    extend = functools.partial(jax_sa.extend_lookup_tree, **options)
    _, trees = jax.vmap(extend)(states, blocks, jnp.full((3, 1), 4, jnp.int32))
    for nth in range(3):
        _, tree = extend(jax_sa.init(1, 8), blocks[nth], int32([4]))
        assert nodes_of(jax.tree.map(lambda x, n=nth: x[n], trees), 0) == nodes_of(tree, 0)


def random_followers(random, vocabulary, num_groups, known=0.8):
    """Of some tokens fewer than eight are known, of some none."""
    tables = np.full((num_groups, vocabulary, 8), -1)
    for entry in tables.reshape(-1, 8):
        count = random.integers(0, 9) if random.random() < known else 0
        count = min(count, vocabulary)
        entry[:count] = random.permutation(vocabulary)[:count]
    return tables


@pytest.mark.parametrize("name", texts.SMALL)
def test_trees(name):
    """Every token of a text, whose tokens are not all in the vocabulary."""
    text = texts.SMALL[name]
    random = np.random.default_rng(0)
    vocabulary = min(max(max(text), 1), 300)
    tables = random_followers(random, vocabulary, 1)[0]
    followers = jax_sa.Followers(int32(tables[None]))
    state, automaton = jax_sa.init(1, len(text)), Automaton(len(text))
    sources = set()
    for n, token in enumerate(text):
        automaton.append(token)
        options = LOOKUPS[n % len(LOOKUPS)]
        state, tree = _extend_lookup_tree(
            state, int32([[token]]), int32([1]), followers=followers, **options
        )
        nodes = nodes_of(tree, 0)
        assert nodes == expected(automaton, growth=(tables.tolist(), token), **options)
        sources |= {source for *_, source in nodes}
        if n % 5 == 0:
            again = _lookup_tree(state, followers=followers, **options)
            assert nodes_of(again, 0) == nodes
    assert (jax_sa.Source.FOLLOWER in sources) == (min(text) < vocabulary)


def test_groups_and_limits():
    """Each row sees the followers of its group; with a pool, both are of the same groups."""
    random = np.random.default_rng(3)
    tables = random_followers(random, 9, 2, known=1.0)
    followers, pool = jax_sa.Followers(int32(tables)), jax_sa.init_pool(64, num_groups=2)
    state = jax_sa.extend(jax_sa.init(5, 8), int32([[3, 4]] * 5), int32([2, 2, 2, 2, 0]))
    groups, limits = int32([0, 1, -1, 1, 0]), int32([9, 9, 9, 1, 9])
    options = {"max_nodes": 12, "groups": groups, "limits": limits, "followers": followers}
    trees = _lookup_tree(state, pool=pool, **options)
    automaton = Automaton(8)
    automaton.append(3)
    automaton.append(4)
    for row in (0, 1, 3):
        growth = tables[int(groups[row])].tolist(), 4
        assert nodes_of(trees, row) == expected(
            automaton, max_nodes=12, max_draft=int(limits[row]), growth=growth
        )
    assert trees.length.tolist()[2::2] == [0, 0]  # of no group; without a text
    with pytest.raises(ValueError, match=r"followers\.tokens: expected 3 groups, as the pool has"):
        jax_sa.lookup_tree(
            state, max_nodes=2, followers=followers, pool=jax_sa.init_pool(8, num_groups=3)
        )


def test_tables_from_a_file_may_hold_any_number():
    """None below 0 is a token, and no node has two children of one token."""
    tables = np.full((1, 4, 8), -7)
    tables[0, 1, :5] = [-(2**31), 2**31 - 1, 2, 2, 2**31 - 1]
    tables[0, 2, :3] = [3, 3, 3]
    state = jax_sa.extend(jax_sa.init(1, 4), int32([[1]]), int32([1]))
    tree = jax_sa.lookup_tree(state, max_nodes=32, followers=jax_sa.Followers(int32(tables)))
    nodes = [(2**31 - 1, -1, 1, 2, 4), (2, -1, 1, 3, 4), (3, 1, 2, 1, 4)]
    assert nodes_of(tree, 0) == nodes
    assert nodes == tree_reference.grow([], 32, tables[0].tolist(), 1, 32)


def test_saved_and_loaded(tmp_path):
    followers = jax_sa.Followers(int32(random_followers(np.random.default_rng(0), 6, 2)))
    jax_sa.save(tmp_path / "followers", followers)
    loaded = jax_sa.load(tmp_path / "followers")
    assert isinstance(loaded, jax_sa.Followers)
    np.testing.assert_array_equal(loaded.tokens, followers.tokens)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: jax_sa.init_followers(0), ValueError, "vocabulary: expected .*, got 0"),
        (lambda f: jax_sa.init_followers(2.0), TypeError, "vocabulary: expected an int"),
        (lambda f: jax_sa.init_followers(3, num_groups=0), ValueError, "num_groups: expected"),
        (
            lambda f: jax_sa.note_followers(f.tokens, int32([0]), jnp.zeros((1, 5))),
            TypeError,
            r"followers: expected a jax_sa\.Followers",
        ),
        (
            lambda f: jax_sa.note_followers(f, int32([[0]]), jnp.zeros((1, 5))),
            ValueError,
            r"tokens: expected int32\[T,\]",
        ),
        (
            lambda f: jax_sa.note_followers(f, int32([0]), jnp.zeros((1, 4))),
            ValueError,
            r"logits: expected float32\[1, 5\], got float32\[1, 4\]",
        ),
        (
            lambda f: jax_sa.note_followers(f, int32([0]), int32([[0] * 5])),
            TypeError,
            r"logits: expected float32\[1, 5\], got int32",
        ),
        (
            lambda f: jax_sa.note_followers(f, int32([0]), jnp.zeros((1, 5)), groups=int32([0, 0])),
            ValueError,
            r"groups: expected int32\[1,\]",
        ),
        (
            lambda f: jax_sa.lookup_tree(jax_sa.init(1, 4), max_nodes=2, followers=f.tokens),
            TypeError,
            r"followers: expected a jax_sa\.Followers",
        ),
        (
            lambda f: jax_sa.lookup_tree(
                jax_sa.init(1, 4), max_nodes=2, followers=jax_sa.Followers(f.tokens[:0])
            ),
            ValueError,
            r"followers\.tokens: expected a group at least",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(jax_sa.init_followers(5))


def test_the_reference_by_hand():
    """Of eight and more, the likeliest; of equal ones, the first."""
    logits = [0.0, 2.0, -math.inf, 2.0, math.nan, 1.0]
    assert tree_reference.followers_of(logits) == [1, 3, 5, 0, -1, -1, -1, -1]
    shape = tree_reference.growth_shape()
    assert shape[:5] == [(0,), (0, 0), (1,), (2,), (0, 0, 0)]
    assert len(set(shape)) == 32 and max(map(len, shape)) == 5
    assert all(ranks[:-1] in [(), *shape[:n]] for n, ranks in enumerate(shape))
