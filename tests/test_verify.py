"""accept_greedy and merge_drafts against loops over the tokens, accept_sampled against chance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_sa
from jax_sa import verify

NONE, OWN, POOL, NEURAL, _ = (jnp.int32(source) for source in jax_sa.Source)


def draft_of(tokens, length):
    tokens, length = jnp.asarray(tokens, jnp.int32), jnp.asarray(length, jnp.int32)
    return jax_sa.Draft(
        tokens, length, match_length=length, match_end=length, source=jnp.full_like(length, OWN)
    )


def expected(draft, length, targets):
    accepted = 0
    while accepted < length and draft[accepted] == targets[accepted]:
        accepted += 1
    emitted = [*draft[:accepted], targets[accepted]]
    return emitted + [jax_sa.DRAFT_FILL] * (len(targets) - len(emitted)), len(emitted)


@pytest.mark.parametrize("dtype", ["int32", "float32", "bfloat16"])
@pytest.mark.parametrize("seed", range(20))
def test_longest_confirmed_prefix(dtype, seed):
    random = np.random.default_rng(seed)
    rows, max_draft, vocabulary = 5, 4, 3
    tokens = random.integers(0, vocabulary, (rows, max_draft))
    length = random.integers(0, max_draft + 1, rows)
    targets = random.integers(0, vocabulary, (rows, 1 + max_draft))
    targets[0, :max_draft] = tokens[0]
    given = jnp.asarray(targets, jnp.int32)
    if dtype != "int32":
        given = jax.nn.one_hot(given, vocabulary, dtype=dtype)
    accepted = jax.jit(jax_sa.accept_greedy)(draft_of(tokens, length), given)
    for row in range(rows):
        want, want_length = expected(tokens[row].tolist(), length[row], targets[row].tolist())
        assert accepted.tokens[row].tolist() == want
        assert int(accepted.length[row]) == want_length


@pytest.mark.parametrize(
    ("draft", "targets", "error", "message"),
    [
        (draft_of([[1]], [1]), jnp.zeros((1, 3), jnp.int32), ValueError, r"int32\[1, 2\], got"),
        (draft_of([[1]], [1]), jnp.zeros((2, 2, 5)), ValueError, r"float32\[1, 2, V\], got"),
        (draft_of([[1]], [1]), jnp.zeros((1, 2), jnp.uint8), TypeError, "targets: .*got uint8"),
        (draft_of([[1]], [1]), [[1, 2]], TypeError, "targets: expected int32.*got list"),
        (draft_of([1], [1]), jnp.zeros((1, 2), jnp.int32), ValueError, r"draft.tokens: .*B, K"),
        ([[1]], jnp.zeros((1, 2), jnp.int32), TypeError, "draft: expected a jax_sa.Draft"),
    ],
)
def test_errors(draft, targets, error, message):
    with pytest.raises(error, match=message):
        jax_sa.accept_greedy(draft, targets)


def test_no_drafted_tokens():
    draft = draft_of(np.zeros((2, 0)), [0, 0])
    assert jax_sa.accept_greedy(draft, jnp.asarray([[4], [5]], jnp.int32)).tokens.tolist() == [
        [4],
        [5],
    ]
    logits = jax.nn.one_hot(jnp.asarray([[4], [5]]), 9)
    accepted = jax_sa.accept_sampled(jax.random.key(0), draft, logits, 0.0)
    assert accepted.tokens.tolist() == [[4], [5]] and accepted.length.tolist() == [1, 1]


KEY = jax.random.key(0)
ONE, ZERO = draft_of([[1]], [1]), jnp.zeros(1, jnp.int32)

# accept_sampled: three positions of five tokens, the draft always 2, 0. A row is a trial.
TRIALS = 60_000
LOGITS = np.array([[0.1, -0.4, 0.9, 0.0, -2.0], [1.2, 0.3, -0.5, 0.8, 0.2], [0.0, 1.0, 0.5, -1, 2]])
DRAFT = [2, 0]
FILTERS = [
    {},
    {"temperature": 0.6},
    {"top_k": 3},
    {"top_p": 0.7},
    {"temperature": 1.7, "top_k": 4, "top_p": 0.85},
]
ONCE_IN_A_MILLION = 1e-6


def distribution(logits, temperature=1.0, top_k=None, top_p=1.0):
    """The target as the words say it: one token after another, likeliest first."""
    order = sorted(range(len(logits)), key=lambda token: -logits[token])[:top_k]
    weights = np.exp(np.array([logits[token] for token in order]) / temperature)
    probabilities, kept = np.zeros(len(logits)), 0.0
    for token, weight in zip(order, weights / weights.sum(), strict=True):
        if kept < top_p:
            probabilities[token] = weight
        kept += weight
    return probabilities / probabilities.sum()


def jitted(options):
    return jax.jit(functools.partial(jax_sa.accept_sampled, **options))


JITTED = [(options, jitted(options)) for options in FILTERS]


def sampled(accept, length=2, seed=0):
    draft = draft_of(np.tile(DRAFT, (TRIALS, 1)), np.full(TRIALS, length))
    logits = jnp.asarray(np.tile(LOGITS, (TRIALS, 1, 1)), jnp.float32)
    return jax.device_get(accept(jax.random.key(seed), draft, logits))


def chance(tokens, probabilities):
    """Of frequencies at least as far from `probabilities`: Pearson's chi-square."""
    counts = np.bincount(tokens, minlength=len(probabilities))
    assert not np.any(counts[probabilities == 0])
    expected = len(tokens) * probabilities[probabilities > 0]
    statistic = np.sum((counts[probabilities > 0] - expected) ** 2 / expected)
    degrees = np.count_nonzero(probabilities) - 1
    return float(jax.scipy.special.gammaincc(degrees / 2, statistic / 2))


def chances(accepted, options):
    """Of the tokens at each position, given that the step came so far: each has its target."""
    return [
        chance(accepted.tokens[accepted.length > position, position], target)
        for position, target in enumerate(distribution(logits, **options) for logits in LOGITS)
        if np.any(accepted.length > position)
    ]


@pytest.mark.parametrize(("options", "accept"), JITTED, ids=map(str, FILTERS))
@pytest.mark.parametrize("length", [0, 1, 2])
def test_emitted_tokens_have_the_targets_distribution(options, accept, length):
    accepted = sampled(accept, length)
    assert min(chances(accepted, options)) > 1e-3
    # A step goes on as often as the target confirms what was drafted.
    for position in range(length):
        confirmed = accepted.length[accepted.length > position] > position + 1
        p = distribution(LOGITS[position], **options)[DRAFT[position]]
        if 0 < p < 1:
            assert chance(confirmed.astype(int), np.array([1 - p, p])) > 1e-3
        else:
            assert np.all(confirmed == p)
    assert accepted.length.max() <= 1 + length


@pytest.mark.parametrize(
    "wrong",
    [
        lambda scores, refused: scores,  # p itself: drafted tokens come too often
        lambda scores, refused: jnp.zeros_like(scores).at[:, 2].set(-jnp.inf),  # uniform
    ],
)
def test_the_check_sees_a_wrong_residual(wrong, monkeypatch):
    monkeypatch.setattr(verify, "_without", wrong)
    assert chances(sampled(jitted({})), {})[0] < ONCE_IN_A_MILLION


def test_the_check_sees_drafts_accepted_too_often(monkeypatch):
    uniform = jax.random.uniform
    monkeypatch.setattr(jax.random, "uniform", lambda *args: 0.9 * uniform(*args))
    assert chances(sampled(jitted({})), {})[0] < ONCE_IN_A_MILLION


def test_as_direct_sampling():
    """Two samples of one law: tokens drawn by jax.random, and those of accept_sampled."""
    drawn = jax.random.categorical(
        jax.random.key(1), jnp.asarray(LOGITS[0], jnp.float32), shape=(TRIALS,)
    )
    ours = np.bincount(sampled(jitted({}), seed=2).tokens[:, 0], minlength=5)
    theirs = np.bincount(np.asarray(drawn), minlength=5)
    statistic = np.sum((ours - theirs) ** 2 / (ours + theirs))
    assert jax.scipy.special.gammaincc(4 / 2, statistic / 2) > 1e-3


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_p": 0.3}], ids=str)
def test_temperature_zero_is_greedy(seed, options):
    random = np.random.default_rng(seed)
    logits = jnp.asarray(random.integers(0, 3, (50, 4, 6)), jnp.bfloat16)  # ties, too
    best = np.array(jnp.argmax(logits, axis=-1))[:, :3]
    tokens = np.where(random.random((50, 3)) < 0.7, best, random.integers(-2, 8, (50, 3)))
    draft = draft_of(tokens, random.integers(0, 4, 50))
    greedy = jax_sa.accept_greedy(draft, logits)
    sampled = jax_sa.accept_sampled(jax.random.key(seed), draft, logits, 0.0, **options)
    jax.tree.map(np.testing.assert_array_equal, sampled, greedy)


def test_every_row_has_its_own_filter():
    """Rows with 0 are greedy, rows with top_k 1, a tiny top_p or a tiny temperature are, too."""
    rows = 6
    draft = draft_of(np.full((rows, 2), 4), np.zeros(rows))
    logits = jnp.asarray(np.tile(LOGITS, (rows, 1, 1)), jnp.float32)
    sampling = {
        "temperature": jnp.asarray([0.0, 1e-30, 1.0, 1.0, -1.0, 50.0]),
        "top_k": jnp.asarray([5, 5, 1, 5, 5, 5], jnp.int32),
        "top_p": jnp.asarray([1.0, 1.0, 1.0, 0.0, 1.0, 1.0]),
    }
    accept = jax.jit(jax.vmap(lambda key: jax_sa.accept_sampled(key, draft, logits, **sampling)))
    drawn = accept(jax.random.split(jax.random.key(0), 200)).tokens
    for row in range(rows):
        seen = set(np.asarray(drawn[:, row, 0]).tolist())
        assert seen == ({2} if row < 5 else set(range(5)))


def test_ties_with_the_last_are_kept():
    logits = jnp.asarray([[[1.0, 3.0, 1.0, 1.0, 0.0]]])
    draft = draft_of(np.zeros((1, 0)), [0])
    for options, kept in [({"top_k": 2}, {0, 1, 2, 3}), ({"top_p": 0.8}, {0, 1, 2, 3})]:
        accept = jax.jit(jax.vmap(jitted(options), in_axes=(0, None, None)))
        drawn = accept(jax.random.split(jax.random.key(0), 500), draft, logits)
        assert set(np.asarray(drawn.tokens).ravel().tolist()) == kept


def test_tokens_that_the_model_does_not_know_are_refused():
    draft = draft_of([[-1], [5], [2**31 - 1]], [1, 1, 1])
    accepted = jitted({})(jax.random.key(0), draft, jnp.zeros((3, 2, 5)))
    assert accepted.length.tolist() == [1, 1, 1]
    assert np.all((accepted.tokens[:, 0] >= 0) & (accepted.tokens[:, 0] < 5))


@pytest.mark.parametrize(
    "temperature",
    [1e37, 1.01e37, 3e38, 1e39, np.full(TRIALS, 3e38, "f"), np.full(TRIALS, np.inf, "f")],
)
def test_the_hottest_temperature_draws_no_masked_token(temperature):
    """Evenly among the tokens that the logits allow, whatever the device makes of 1 / 1e38."""
    logits = np.tile([[[0.0, -np.inf, 2.0, -np.inf, 1.0]]], (TRIALS, 2, 1))
    draft = draft_of(np.ones((TRIALS, 1)), np.ones(TRIALS))  # a masked token
    accepted = jax.device_get(
        jax.jit(jax_sa.accept_sampled)(
            jax.random.key(3), draft, jnp.asarray(logits, jnp.float32), temperature
        )
    )
    assert np.all(accepted.length == 1)
    assert chance(accepted.tokens[:, 0], np.array([1, 0, 1, 0, 1]) / 3) > 1e-3


@pytest.mark.parametrize("temperature", [0.0, 1e-45, 1e-39, 1e-38, 1e-37, 1e-30])
@pytest.mark.parametrize("as_array", [False, True])
def test_the_coldest_temperatures_are_greedy(temperature, as_array):
    logits = jnp.asarray([[[0.0, 1.0, 0.999, -jnp.inf]]], jnp.float32)
    draft = draft_of(np.zeros((1, 0)), [0])
    if as_array:
        temperature = jnp.full(1, np.float32(temperature))
    drawn = jax.vmap(lambda key: jax_sa.accept_sampled(key, draft, logits, temperature).tokens)(
        jax.random.split(jax.random.key(0), 50)
    )
    assert np.all(np.asarray(drawn) == 1)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e38])
@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_p": 0.3}], ids=str)
def test_places_that_are_not_numbers_are_greedy(temperature, options):
    nan, inf = np.nan, np.inf
    logits = [[0, nan, 3, nan], [1, inf, 0, inf], [-inf] * 4, [nan] * 4, [inf, 0, nan, 1]]
    want = [1, 1, 0, 0, 2]
    logits = jnp.asarray(np.repeat(np.array(logits)[:, None], 2, axis=1), jnp.bfloat16)
    accept = jax.jit(functools.partial(jax_sa.accept_sampled, **options))
    for drafted in (want, [3, 3, 3, 3, 3]):
        draft = draft_of(np.array(drafted)[:, None], [1] * 5)
        greedy = jax_sa.accept_greedy(draft, logits)
        assert greedy.tokens[:, 0].tolist() == want
        for seed in range(20):
            accepted = accept(jax.random.key(seed), draft, logits, temperature)
            jax.tree.map(np.testing.assert_array_equal, accepted, greedy)


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_the_same_key_draws_the_same_in_x64(options):
    def draw():
        draft = draft_of(np.tile(DRAFT, (500, 1)), np.full(500, 2))
        logits = jnp.asarray(np.tile(LOGITS, (500, 1, 1)), jnp.float32)
        return jax.device_get(
            jax.jit(functools.partial(jax_sa.accept_sampled, **options))(KEY, draft, logits)
        )

    narrow = draw()
    with jax.enable_x64(True):
        wide = draw()
    jax.tree.map(functools.partial(np.testing.assert_array_equal, strict=True), wide, narrow)


# Packed logits: the same rows, each without the places beyond its draft.


def pack(dense, lengths, gap, order):
    """`dense` [B, 1 + K, ...] as packed places, and the first of each row; `gap` is padding."""
    places, first = [np.full((gap, *dense.shape[2:]), 1e9)], np.zeros(len(lengths), np.int32)
    for row in order:
        first[row] = sum(map(len, places))
        places.append(dense[row, : 1 + lengths[row]])
    places.append(np.full((gap, *dense.shape[2:]), -1e9))
    return np.concatenate(places), jnp.asarray(first)


PACKED_OPTIONS = {
    "plain": lambda random, rows: {},
    "numbers": lambda random, rows: {"temperature": 0.7, "top_k": 4, "top_p": 0.8},
    "per row": lambda random, rows: {
        "temperature": jnp.asarray(random.choice([0.0, 0.5, 1.0, 3.0], rows), jnp.float32),
        "top_k": jnp.asarray(random.integers(1, 9, rows), jnp.int32),
        "top_p": jnp.asarray(random.choice([0.2, 0.7, 1.0], rows), jnp.float32),
    },
}


def packed_cases():
    """Any two of a draft's length, the options and the logits come together, not all three."""
    for i, max_draft in enumerate((0, 1, 5)):
        for j, options in enumerate(PACKED_OPTIONS):
            for k, logits in enumerate(((0, "float32"), (3, "bfloat16"))):
                marks = () if (i + j + k) % 2 == 0 else pytest.mark.slow
                yield pytest.param(max_draft, options, *logits, marks=marks)


@pytest.mark.parametrize(("max_draft", "options", "gap", "dtype"), list(packed_cases()))
def test_packed_logits_give_what_dense_ones_do(max_draft, options, gap, dtype):
    random = np.random.default_rng(max_draft)
    rows, vocabulary = 64, 8
    lengths = random.integers(0, max_draft + 1, rows)
    draft = draft_of(random.integers(-1, vocabulary + 1, (rows, max_draft)), lengths)
    dense = 2 * random.normal(size=(rows, 1 + max_draft, vocabulary))
    dense[:, :max_draft] += 3 * np.eye(vocabulary)[np.clip(draft.tokens, 0, vocabulary - 1)]
    flat, first = pack(dense, lengths, gap, random.permutation(rows))
    dense, flat = jnp.asarray(dense, dtype), jnp.asarray(flat, dtype)

    greedy = jax.jit(jax_sa.accept_greedy)
    expected = greedy(draft, dense)
    jax.tree.map(np.testing.assert_array_equal, greedy(draft, flat, first=first), expected)
    chosen = jnp.argmax(flat, axis=-1).astype(jnp.int32)
    jax.tree.map(np.testing.assert_array_equal, greedy(draft, chosen, first=first), expected)

    sampled = jax.jit(jax_sa.accept_sampled)
    sampling = PACKED_OPTIONS[options](random, rows)
    sampling = {name: jnp.asarray(value) for name, value in sampling.items()}
    for seed in range(5):
        key = jax.random.key(seed)
        expected = sampled(key, draft, dense, **sampling)
        got = sampled(key, draft, flat, first=first, **sampling)
        jax.tree.map(np.testing.assert_array_equal, got, expected)
    if max_draft:
        assert expected.length.max() > 1 and expected.length.min() == 1


@pytest.mark.parametrize("first", [-(2**31), -1, 5, 2**31 - 1])
@pytest.mark.parametrize("length", [-3, 0, 2, 99])
def test_packed_places_are_kept_in_bounds(first, length):
    """A row out of its contract emits some token of the vocabulary, and does not spoil others."""
    draft = draft_of([[1, 2], [3, 0]], [2, length])
    first = jnp.asarray([0, first], jnp.int32)
    logits = 9.0 * jax.nn.one_hot(jnp.asarray([1, 2, 3, 4, 0]), 5)
    for accepted in (
        jax_sa.accept_greedy(draft, logits, first=first),
        jax_sa.accept_sampled(KEY, draft, logits, 1e-9, first=first),
    ):
        assert accepted.tokens[0].tolist() == [1, 2, 3]
        assert 1 <= accepted.length[1] <= 3
        assert np.all((accepted.tokens >= 0) & (accepted.tokens < 5))


@pytest.mark.parametrize("sampling", [None, {}, {"temperature": 0.5}, {"top_k": 3}], ids=str)
def test_packed_logits_are_never_padded(sampling):
    rows, max_draft, places, vocabulary = 64, 31, 96, 4096
    draft = jax.eval_shape(lambda: draft_of(np.zeros((rows, max_draft)), np.zeros(rows)))
    logits = jax.ShapeDtypeStruct((places, vocabulary), jnp.float32)
    first = jax.ShapeDtypeStruct((rows,), jnp.int32)
    accept = jax_sa.accept_greedy
    if sampling is not None:
        accept = functools.partial(jax_sa.accept_sampled, KEY, **sampling)
    compiled = jax.jit(accept).lower(draft, logits, first=first).compile()
    padded = 4 * rows * (1 + max_draft) * vocabulary
    assert compiled.memory_analysis().temp_size_in_bytes < padded // 3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"draft": [[1]]}, TypeError, "draft: expected a jax_sa.Draft"),
        ({"logits": jnp.zeros((1, 3, 5))}, ValueError, r"logits: .*float32\[1, 2, V\], got"),
        ({"logits": jnp.zeros((1, 2, 5), jnp.int32)}, TypeError, "logits: .*float32.*got int32"),
        ({"temperature": -0.1}, ValueError, "temperature: expected a finite .*got -0.1"),
        ({"temperature": float("nan")}, ValueError, "temperature: expected a finite .*got nan"),
        ({"temperature": jnp.zeros(2)}, ValueError, r"temperature: .*float32\[1,\], got"),
        ({"temperature": "1"}, TypeError, "temperature: expected float32.*got str"),
        ({"top_k": 0}, ValueError, "top_k: expected an int .*got 0"),
        ({"top_k": 2.0}, TypeError, "top_k: expected an int .*got 2.0"),
        ({"top_k": jnp.ones(1)}, TypeError, "top_k: expected int32.*got float32"),
        ({"top_p": 0}, ValueError, r"top_p: expected a number in \(0, 1\], got 0"),
        ({"top_p": 1.5}, ValueError, "top_p: expected a number .*got 1.5"),
        ({"temperature": True}, TypeError, "temperature: expected a number .*got True"),
        ({"temperature": np.True_}, TypeError, "temperature: expected a number .*got .*True"),
        ({"temperature": None}, TypeError, "temperature: expected float32.*got NoneType"),
        ({"top_k": True}, TypeError, "top_k: expected a number .*got True"),
        ({"top_p": True}, TypeError, "top_p: expected a number .*got True"),
        ({"first": [0]}, TypeError, r"first: expected int32\[1,\], got list"),
        ({"first": ZERO}, ValueError, r"logits: expected float32\[T, V\], got float32\[1, 2, 5\]"),
        (
            {"first": ZERO, "logits": jnp.zeros((0, 5))},
            ValueError,
            r"logits: expected one place .*got \[0, 5\]",
        ),
    ],
)
def test_accept_sampled_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        jax_sa.accept_sampled(
            **{"key": KEY, "draft": ONE, "logits": jnp.zeros((1, 2, 5))} | arguments
        )


def expected_merge(automaton, neural, match_length, threshold):
    """The rule as its words say it: the tokens, and whether the automaton's draft is used."""
    common = 0
    while common < min(len(automaton), len(neural)) and automaton[common] == neural[common]:
        common += 1
    used = len(automaton) > 0 and match_length + common >= threshold
    merged = list(automaton) if used else []
    return merged + list(neural[len(merged) :]), used


@pytest.mark.parametrize("as_draft", [False, True])
@pytest.mark.parametrize("widths", [(4, 1), (4, 3), (2, 5), (0, 2), (3, 0), (3, 3)])
@pytest.mark.parametrize("threshold", [1, 2, 4, 5, 10**9, 2**31 - 1])
def test_merged_drafts(as_draft, widths, threshold):
    random = np.random.default_rng(sum(widths))
    rows, (max_draft, neural_width) = 200, widths
    tokens = random.integers(1, 3, (rows, max_draft))
    length = random.integers(0, max_draft + 1, rows)
    match = random.integers(0, 8, rows)
    neural = random.integers(1, 3, (rows, neural_width))
    neural_length = (
        random.integers(0, neural_width + 1, rows) if as_draft else [neural_width] * rows
    )
    ends = jnp.asarray(match + 100, jnp.int32)
    source = jnp.asarray(random.choice([OWN, POOL], rows), jnp.int32)
    merged = jax.jit(jax_sa.merge_drafts, static_argnames="threshold")(
        jax_sa.Draft(*map(jnp.int32, (tokens, length, match)), match_end=ends, source=source),
        draft_of(neural, neural_length) if as_draft else jnp.int32(neural),
        threshold=threshold,
    )
    merged = jax.device_get(merged)
    for row in range(rows):
        want, used = expected_merge(
            tokens[row, : length[row]], neural[row, : neural_length[row]], match[row], threshold
        )
        fill = [jax_sa.DRAFT_FILL] * (max(widths) - len(want))
        assert merged.tokens[row].tolist() == want + fill
        assert int(merged.length[row]) == len(want)
        assert int(merged.match_length[row]) == match[row] * used
        assert int(merged.match_end[row]) == (match[row] + 100) * used
        assert merged.source[row] == (source[row] if used else NEURAL if want else NONE)


def test_agreement_counts_as_match_length():
    automaton = jax_sa.Draft(
        tokens=jnp.array([[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 0, 0], [0, 0, 0]], jnp.int32),
        length=jnp.array([3, 3, 3, 1, 0], jnp.int32),
        match_length=jnp.array([2, 2, 4, 1, 9], jnp.int32),
        match_end=jnp.array([7, 7, 7, 7, 7], jnp.int32),
        source=jnp.array([OWN, OWN, POOL, POOL, OWN]),
    )
    neural = jnp.array([[1, 2], [1, 9], [8, 9], [1, 0], [0, 5]], jnp.int32)
    merged = jax_sa.merge_drafts(automaton, neural, threshold=4)
    assert merged.tokens.tolist() == [[1, 2, 3], [1, 9, 0], [1, 2, 3], [1, 0, 0], [0, 5, 0]]
    assert merged.length.tolist() == [3, 2, 3, 2, 2]
    assert merged.match_length.tolist() == [2, 0, 4, 0, 0]
    assert merged.match_end.tolist() == [7, 0, 7, 0, 0]
    assert merged.source.tolist() == [OWN, NEURAL, POOL, NEURAL, NEURAL]


def test_lengths_beyond_the_draft_are_the_whole_draft():
    automaton, neural = draft_of([[1, 2]], [99]), draft_of([[3, 4, 5]], [99])
    merged = jax_sa.merge_drafts(automaton, neural, threshold=4)
    assert merged.tokens.tolist() == [[1, 2, 5]] and merged.length.tolist() == [3]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"threshold": 0}, ValueError, r"threshold: expected an int in \[1, .*got 0"),
        ({"threshold": 1.5}, TypeError, "threshold: expected an int .*got 1.5"),
        ({"automaton_draft": None}, TypeError, "automaton_draft: expected a jax_sa.Draft"),
        ({"neural_draft": jnp.ones((2, 1), jnp.int32)}, ValueError, r"neural_draft: .*\[1, M\]"),
        ({"neural_draft": jnp.ones((1, 1))}, TypeError, "neural_draft: expected int32"),
        (
            {"neural_draft": draft_of([[1], [1]], [1, 1])},
            ValueError,
            "neural_draft: expected 1 rows, got 2",
        ),
    ],
)
def test_merge_drafts_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        jax_sa.merge_drafts(**{"automaton_draft": ONE, "neural_draft": ONE} | arguments)
