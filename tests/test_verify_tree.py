"""accept_tree_greedy against walks down the tree, accept_tree_sampled against chance."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_draft_tree import random_trees
from test_verify import FILTERS, ONCE_IN_A_MILLION, TRIALS, chance, distribution

import jax_sa
from jax_sa import verify_tree


def walk(tree, row, chosen):
    """The places of the path that `chosen` goes down, in the row's block."""
    place, path = 0, [0]
    while True:
        children = [
            1 + node
            for node in range(int(tree.length[row]))
            if tree.parents[row, node] + 1 == place and tree.tokens[row, node] == chosen[place]
        ]
        if not children:
            return path
        (place,) = children
        path.append(place)


def assert_walks(tree, accepted, path, chosen):
    tree, accepted, path = jax.device_get((tree, accepted, path))
    width = chosen.shape[1]
    for row in range(chosen.shape[0]):
        want = walk(tree, row, chosen[row])
        assert accepted.length[row] == len(want)
        assert path[row].tolist() == want + list(range(len(want), width))
        emitted = [int(chosen[row, place]) for place in want]
        filled = emitted + [jax_sa.DRAFT_FILL] * (width - len(want))
        assert accepted.tokens[row].tolist() == filled


@pytest.mark.parametrize("dtype", ["int32", "float32", "bfloat16"])
@pytest.mark.parametrize("max_nodes", [1, 3, 16])
def test_greedy_goes_down_the_tree(dtype, max_nodes):
    rows, vocabulary = 40, 4 if max_nodes > 1 else 2
    tree = random_trees(rows, max_nodes, vocabulary, seed=max_nodes)
    chosen = np.random.default_rng(1).integers(0, vocabulary, (rows, 1 + max_nodes))
    targets = jnp.asarray(chosen, jnp.int32)
    if dtype != "int32":
        targets = jax.nn.one_hot(targets, vocabulary, dtype=dtype)
    accepted, path = jax.jit(jax_sa.accept_tree_greedy)(tree, targets)
    assert_walks(tree, accepted, path, chosen)
    assert max_nodes == 1 or accepted.length.max() > 2


def pack(tree, values):
    """The rows' places without padding, each row's block after a place of nobody's; `first`."""
    packed, first = [], []
    for row, length in enumerate(tree.length.tolist()):
        packed.append(np.zeros_like(values[row, 0]))
        first.append(len(packed))
        packed.extend(values[row, : 1 + length])
    return jnp.asarray(np.stack(packed)), jnp.asarray(first, jnp.int32)


def test_packed():
    tree = random_trees(9, 12, 3)
    logits = np.random.default_rng(0).normal(size=(9, 13, 3)).astype(np.float32)
    packed, first = pack(tree, logits)
    want = jax_sa.accept_tree_greedy(tree, jnp.asarray(logits))
    got = jax_sa.accept_tree_greedy(tree, packed, first=first)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    chosen = jnp.argmax(packed, axis=-1).astype(jnp.int32)
    got = jax_sa.accept_tree_greedy(tree, chosen, first=first)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    key = jax.random.key(3)
    temperature = jnp.linspace(0.0, 2.0, 9)
    want = jax_sa.accept_tree_sampled(key, tree, jnp.asarray(logits), temperature, top_p=0.9)
    got = jax_sa.accept_tree_sampled(key, tree, packed, temperature, top_p=0.9, first=first)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def chain_of(draft):
    """The draft as a tree."""
    width = draft.tokens.shape[1]
    index = jnp.arange(width, dtype=jnp.int32)[None]
    inside = index < draft.length[:, None]

    def put(values, fill):
        return jnp.where(inside, values, fill)

    match = put(draft.match_length[:, None], 0)
    return jax_sa.DraftTree(
        draft.tokens, put(index - 1, jax_sa.ROOT), put(index + 1, 0), match, put(1, 0), draft.length
    )


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_a_chain_is_accepted_like_a_draft(options):
    random = np.random.default_rng(0)
    length = jnp.asarray(random.integers(0, 5, 500), jnp.int32)
    tokens = jnp.asarray(random.integers(0, 5, (500, 4)), jnp.int32)
    tokens = jnp.where(jnp.arange(4)[None] < length[:, None], tokens, jax_sa.DRAFT_FILL)
    draft = jax_sa.Draft(tokens, length, length, length, jnp.ones_like(length))
    logits = jnp.asarray(random.normal(size=(500, 5, 5)), jnp.float32)
    key = jax.random.key(7)
    want = jax_sa.accept_sampled(key, draft, logits, **options)
    got, path = jax_sa.accept_tree_sampled(key, chain_of(draft), logits, **options)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert path.tolist() == [list(range(5))] * 500
    got, _ = jax_sa.accept_tree_greedy(chain_of(draft), logits)
    jax.tree.map(np.testing.assert_array_equal, got, jax_sa.accept_greedy(draft, logits))


# A tree of seven nodes over five tokens: three children of the root, and below 2 and 0 some more.
NODES = {  # place: (token, parent's place, depth)
    1: (2, 0, 1),
    2: (0, 1, 2),
    3: (3, 1, 2),
    4: (0, 0, 1),
    5: (2, 4, 2),
    6: (1, 0, 1),
    7: (4, 3, 3),
}
LOGITS = np.random.default_rng(5).normal(size=(8, 5)).astype(np.float32)


def law(options):
    """The chance of each pair of first and second token that a step may emit, by the words alone.

    None as second token: the step ends with the first.
    """
    chances = {}
    for first, p in enumerate(distribution(LOGITS[0], **options)):
        place = next((q for q, (t, up, _) in NODES.items() if up == 0 and t == first), None)
        if place is None:
            chances[first, None] = p
            continue
        for second, q in enumerate(distribution(LOGITS[place], **options)):
            chances[first, second] = p * q
    return chances


def sampled(options, seed=0):
    tokens, parents, depth = (
        np.tile([node[i] for node in NODES.values()], (TRIALS, 1)) for i in range(3)
    )
    ones = np.ones_like(tokens)
    fields = (tokens, parents - 1, depth, ones, ones, np.full(TRIALS, len(NODES)))
    tree = jax_sa.DraftTree(*(jnp.asarray(field, jnp.int32) for field in fields))
    logits = jnp.asarray(np.tile(LOGITS, (TRIALS, 1, 1)))
    accept = jax.jit(functools.partial(jax_sa.accept_tree_sampled, **options))
    return jax.device_get(accept(jax.random.key(seed), tree, logits))


def chance_of_the_law(accepted, options):
    chances = law(options)
    index = {pair: number for number, pair in enumerate(chances)}
    pairs = [
        (int(first), int(second) if length > 1 else None)
        for (first, second), length in zip(accepted.tokens[:, :2], accepted.length, strict=True)
    ]
    numbers = np.array([index[pair] for pair in pairs])
    return chance(numbers, np.array(list(chances.values())))


@pytest.mark.parametrize("options", [*FILTERS, {"temperature": 0.0}], ids=str)
def test_emitted_tokens_have_the_models_distribution(options):
    accepted, path = sampled(options)
    if options.get("temperature") == 0.0:
        best = np.argmax(LOGITS, axis=-1)
        assert set(map(tuple, accepted.tokens[:, :1].tolist())) == {(int(best[0]),)}
        return
    assert chance_of_the_law(accepted, options) > 1e-3
    assert 1 <= accepted.length.min() and accepted.length.max() <= 4
    # Where the path went on, it holds what was emitted before.
    for j in (1, 2, 3):
        goes_on = accepted.length > j
        held = np.array([0] + [node[0] for node in NODES.values()])[path[goes_on, j]]
        np.testing.assert_array_equal(held, accepted.tokens[goes_on, j - 1])


def test_the_deepest_tokens_too():
    accepted, path = sampled({})
    for place, (_, _, depth) in NODES.items():
        here = (path[:, depth] == place) & (accepted.length > depth)
        assert here.sum() > 100
        assert chance(accepted.tokens[here, depth], distribution(LOGITS[place])) > 1e-3


@pytest.mark.parametrize(
    "wrong",
    [
        lambda scores, refused: scores,  # p itself: the children's tokens come too often
        lambda scores, refused: jnp.zeros_like(scores).at[:, :2].set(-jnp.inf),
    ],
)
def test_the_check_sees_a_wrong_residual(wrong, monkeypatch):
    monkeypatch.setattr(verify_tree, "_without", wrong)
    accepted, _ = sampled({})
    first = chance(accepted.tokens[:, 0], distribution(LOGITS[0]))
    deep = accepted.length == 1
    assert first < ONCE_IN_A_MILLION or np.any(np.isin(accepted.tokens[deep, 0], [2, 0, 1]))


def test_as_direct_sampling():
    """Two samples of one law: tokens drawn by jax.random, and those that a tree's step emits."""
    drawn = jax.random.categorical(jax.random.key(1), jnp.asarray(LOGITS[0]), shape=(TRIALS,))
    accepted, _ = sampled({}, seed=2)
    ours = np.bincount(accepted.tokens[:, 0], minlength=5)
    theirs = np.bincount(np.asarray(drawn), minlength=5)
    statistic = np.sum((ours - theirs) ** 2 / (ours + theirs))
    assert jax.scipy.special.gammaincc(4 / 2, statistic / 2) > 1e-3


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_p": 0.3}], ids=str)
def test_temperature_zero_is_greedy(options):
    random = np.random.default_rng(0)
    tree = random_trees(50, 9, 6)
    logits = jnp.asarray(random.integers(0, 3, (50, 10, 6)), jnp.bfloat16)  # ties, too
    greedy = jax_sa.accept_tree_greedy(tree, logits)
    sampled = jax_sa.accept_tree_sampled(jax.random.key(0), tree, logits, 0.0, **options)
    jax.tree.map(np.testing.assert_array_equal, sampled, greedy)


def test_tokens_outside_the_vocabulary_are_never_accepted():
    tree = random_trees(64, 4, 3)
    odd = jnp.where(tree.tokens == 1, -5, jnp.where(tree.tokens == 2, 99, tree.tokens))
    tree = dataclasses.replace(tree, tokens=odd)
    logits = jnp.zeros((64, 5, 3))
    accepted, path = jax_sa.accept_tree_sampled(jax.random.key(0), tree, logits)
    assert accepted.tokens.min() >= 0 and accepted.tokens.max() < 3
    held = jnp.take_along_axis(odd, jnp.maximum(path[:, 1:] - 1, 0), axis=1)
    inside = jnp.arange(1, 5)[None] < accepted.length[:, None]
    assert not jnp.any(inside & ((held < 0) | (held > 2)))


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        (jnp.zeros((2, 3), jnp.int32), ValueError, r"targets: expected int32\[2, 4\], got"),
        (jnp.zeros((2, 3, 5)), ValueError, r"targets: expected float32\[2, 4, V\], got"),
        ([[1]], TypeError, "targets: expected int32.*got list"),
    ],
)
def test_errors(targets, error, message):
    with pytest.raises(error, match=message):
        jax_sa.accept_tree_greedy(random_trees(2, 3, 4), targets)


def test_errors_of_the_tree():
    draft = jax_sa.lookup(jax_sa.init(2, 8), max_draft=3)
    with pytest.raises(TypeError, match="tree: expected a jax_sa.DraftTree, got Draft"):
        jax_sa.accept_tree_greedy(draft, jnp.zeros((2, 4), jnp.int32))
    with pytest.raises(ValueError, match="top_k"):
        jax_sa.accept_tree_sampled(
            jax.random.key(0), random_trees(2, 3, 4), jnp.zeros((2, 4, 5)), top_k=0
        )
