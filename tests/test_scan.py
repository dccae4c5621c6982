"""The index that scans: against brute force, against the automaton, by kernels and in plain jnp."""

import itertools

import jax
import numpy as np
import pytest
import reference
import texts
from calls import copy_slots, extend, extend_lookup, int32, lookup, pad, reset

import jax_sa
from jax_sa import Status, scan

CAPACITY = 121

LOOKUPS = [
    {},
    {"occurrence": "first"},
    {"min_match": 3},
    {"max_match": 2},
    {"max_match": 2, "occurrence": "first"},
    {"min_match": 2, "max_match": 2},
    {"draft_factor": 0.6},
    {"draft_factor": 2.0, "periodic": False},
    {"periodic": False},
]


@pytest.fixture(scope="module", params=["kernel", "jnp"])
def implementation(request):
    """The kernels of this platform, and what runs where there are none."""
    jax.clear_caches()
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "jnp":
            patch.setattr(scan, "platforms", tuple)
        yield request.param
    jax.clear_caches()


def assert_exact(state, slot, text, status=0):
    """The slot holds the text, and every match is what brute force finds."""
    n = len(text)
    assert int(state.length[slot]) == n
    assert int(state.status[slot]) == status
    assert np.asarray(state.tokens[slot, :n]).tolist() == text
    matches = reference.matches_by_distance(text)
    assert np.asarray(state.match[slot]).tolist() == matches + [0] * (state.max_seq_len - n)


def assert_exact_draft(draft, row, text, max_draft, **options):
    drafting = {k: options.pop(k) for k in ("draft_factor", "periodic") if k in options}
    match = reference.exact_lookup(text, **options)
    expected = reference.draft(text, match, max_draft, **drafting)
    assert (int(draft.match_length[row]), int(draft.match_end[row])) == (match.length, match.end)
    assert int(draft.length[row]) == len(expected)
    filled = expected + [jax_sa.DRAFT_FILL] * (max_draft - len(expected))
    assert np.asarray(draft.tokens[row]).tolist() == filled


@pytest.mark.parametrize("name", texts.SMALL)
def test_every_token(implementation, name):
    text = texts.SMALL[name][:CAPACITY]
    state = jax_sa.init(1, CAPACITY, index="scan")
    for n, token in enumerate(text):
        state = extend(state, [[token]])
        options = LOOKUPS[n % len(LOOKUPS)]
        assert_exact_draft(lookup(state, max_draft=5, **options), 0, text[: n + 1], 5, **options)
    assert_exact(state, 0, text)


@pytest.mark.parametrize("width", [2, 8, 9, 17, 60])
@pytest.mark.parametrize("name", texts.SMALL)
def test_blocks_of_tokens(implementation, name, width):
    text = texts.SMALL[name][:CAPACITY]
    state = jax_sa.init(1, CAPACITY, index="scan")
    for begin in range(0, len(text), width):
        block = text[begin : begin + width]
        state, draft = extend_lookup(state, pad([block], width), lengths=[len(block)], max_draft=40)
        assert_exact_draft(draft, 0, text[: begin + width], 40)
        assert_exact(state, 0, text[: begin + width])


@pytest.mark.parametrize("capacity", [1, 2, 3, 31, 33])
@pytest.mark.parametrize("make", [texts.most_states, texts.most_edges, texts.fibonacci_word])
def test_capacity(implementation, make, capacity):
    """Tokens fill what room there is, one by one or with others that find none."""
    text = make(capacity + 4)[: capacity + 4]
    for width in (1, capacity + 4):
        state = jax_sa.init(1, capacity, index="scan")
        for begin in range(0, len(text), width):
            state = extend(state, [text[begin : begin + width]])
        assert_exact(state, 0, text[:capacity], status=Status.FULL)
        draft = lookup(state, max_draft=3)
        assert not draft.length.any() and not draft.match_length.any() and not draft.match_end.any()


def test_a_factor_rounds_as_float64_does(implementation):
    """Matches of every length, and factors whose products are close to whole numbers."""
    state = jax_sa.init(1, CAPACITY, index="scan")
    for n in range(40):
        state = extend(state, [[1]])
        for factor in (0.1, 0.3, 0.7, 1 / 3, 1.1, 1e-300, 3e300, 1.0000000000000002):
            draft = lookup(state, max_draft=9, draft_factor=factor)
            assert_exact_draft(draft, 0, [1] * (n + 1), 9, draft_factor=factor)


@pytest.mark.parametrize("capacity", [3_000, 40_000])
@pytest.mark.parametrize("make", [lambda n: (texts.source_code() * 9)[:n], texts.most_states])
def test_long_texts_by_the_automaton(implementation, make, capacity):
    """A prompt, then steps, over more than one round of a GPU's threads."""
    if implementation == "jnp" and capacity > 10_000:
        pytest.skip("slow in plain jnp, where the length makes no difference")
    text = make(capacity)
    prompt, rest = text[: capacity - 200], text[capacity - 200 :]
    state, automaton = (jax_sa.init(1, capacity, index=index) for index in ("scan", "automaton"))
    state, automaton = extend(state, [prompt]), extend(automaton, [prompt])
    for begin in range(0, len(rest), 25):
        state = extend(state, [rest[begin : begin + 25]])
        automaton = extend(automaton, [rest[begin : begin + 25]])
        same_first_matches(state, automaton)
    assert not jax_sa.validate(state).any()


def short_periods():
    """All choices of period, length and text before; of the slow ones a half, with every pair."""
    for period, length, repeats in itertools.product((1, 3, 40, 300), (511, 513, 3_000), (0, 700)):
        skip = length == 3_000 and (period in (1, 40)) == (repeats > 0)
        marks = pytest.mark.slow if skip else ()
        yield pytest.param(period, length, [7] * repeats, marks=marks)


@pytest.mark.parametrize(("period", "length", "before"), [*short_periods()])
def test_prompts_of_a_short_period(implementation, period, length, before):
    """Whose tokens match at many distances, and far: the one that a single thread matches."""
    prompt = (texts.random_text(50, period) * length)[:length]
    prompts = [prompt, [*prompt[:300], 9, *prompt[: length - 301]]]
    state = jax_sa.init(2, 40_000, index="scan")
    if before:
        state = extend(state, [before, before])
    state = jax.device_get(extend(state, prompts))
    built = [jax_sa.build_on_host(before + text, 40_000, index="scan") for text in prompts]
    expected = jax.tree.map(lambda *leaves: np.concatenate(leaves), *built)
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def same_first_matches(state, automaton, slots=None):
    """The first end is exact in both; the most recent one only as far as the window keeps it."""
    for options in ({"occurrence": "first"}, {"occurrence": "first", "max_match": 2}):
        drafts = [lookup(s, slots, max_draft=6, **options) for s in (state, automaton)]
        jax.tree.map(np.testing.assert_array_equal, *drafts)
    mine, other = (lookup(s, slots, max_draft=6) for s in (state, automaton))
    np.testing.assert_array_equal(mine.match_length, other.match_length)
    assert np.all(mine.match_end >= other.match_end)


def test_any_sequence_of_calls_leaves_what_the_automaton_holds(implementation):
    """Texts, lengths and status of both indexes are equal after every call, and so are drafts."""
    slots, capacity, width = 5, 24, 4
    random = np.random.default_rng(0)
    states = [jax_sa.init(slots, capacity, index=index) for index in ("scan", "automaton")]

    def same_for_both(op, *arguments, **options):
        results = [op(state, *arguments, **options) for state in states]
        if op is extend_lookup:
            jax.tree.map(np.testing.assert_array_equal, *(draft for _, draft in results))
            results = [state for state, _ in results]
        states[:] = results

    for _ in range(80):
        rows = int(random.choice([0, 3, slots]))  # each number is compiled anew
        ids = random.integers(-2, slots + 2, rows)
        blocks = random.integers(0, 2, (rows, width)).tolist()
        lengths = random.integers(0, width + 1, rows)
        lengths[random.random(rows) < 0.1] = random.choice([-1, width + 1, 2**31 - 1])
        limits = random.integers(-1, 5, rows)
        which = int(random.integers(0, 6))
        if which <= 1:
            same_for_both(extend, blocks, ids, lengths)
        elif which <= 3:
            options = {"max_draft": 3, "occurrence": "first"}
            same_for_both(extend_lookup, blocks, ids, lengths, limits, **options)
        elif which == 4:
            same_for_both(copy_slots, ids, random.permutation(ids))
        else:
            same_for_both(reset, ids[:1])
        state, automaton = states
        for name in ("length", "status"):
            np.testing.assert_array_equal(getattr(state, name), getattr(automaton, name))
        starts = int32(random.integers(-3, capacity, slots))
        np.testing.assert_array_equal(
            *(jax_sa.read_tokens(s, starts, length=9) for s in (state, automaton))
        )
        same_first_matches(state, automaton)
        same_first_matches(state, automaton, ids)
        assert not jax_sa.validate(state).any()


def test_insert_and_a_reset_that_leaves_zeros(implementation):
    text = texts.random_text(3, 40)
    state = extend(jax_sa.init(3, 64, index="scan"), [text, text[:9], text[5:]])
    built = jax_sa.build_on_host(text[::-1], 64, index="scan")
    state = jax_sa.insert(state, built, 1)
    state = jax_sa.insert(state, built, int32(7))
    for slot, expected in enumerate([text, text[::-1], text[5:]]):
        assert_exact(state, slot, expected)
    state = reset(state, [1])
    assert_exact(state, 0, text)
    assert not any(leaf[1].any() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("length", [-1, 65, 2**31 - 1, -(2**31)])
def test_validate_sees_lengths(implementation, length):
    state = extend(jax_sa.init(2, 64, index="scan"), [[1, 2], [1, 1]])
    state.length.block_until_ready()
    broken = jax_sa.ScanState(int32([2, length]), state.status, state.tokens, state.match)
    assert jax_sa.validate(broken).tolist() == [0, jax_sa.Invalid.LENGTH]


@pytest.mark.parametrize("place", [0, 39, 40, 63])
def test_validate_sees_matches(implementation, place):
    state = extend(jax_sa.init(2, 64, index="scan"), [texts.random_text(2, 40)] * 2)
    match = state.match.at[0, place].add(1)
    broken = jax_sa.ScanState(state.length, state.status, state.tokens, match)
    assert jax_sa.validate(broken).tolist() == [jax_sa.Invalid.MATCH, 0]


def test_saved_and_loaded(tmp_path):
    state = extend(jax_sa.init(2, 64, index="scan"), [texts.random_text(2, 40), [1, 1]])
    jax_sa.save(tmp_path / "state.npz", state)
    loaded = jax_sa.load(tmp_path / "state.npz")
    assert isinstance(loaded, jax_sa.ScanState)
    jax.tree.map(np.testing.assert_array_equal, loaded, state)


def test_the_indexes_do_not_mix():
    state = jax_sa.init(2, 8, index="scan")
    with pytest.raises(TypeError, match="built: expected a jax_sa.ScanState, got State"):
        jax_sa.insert(state, jax_sa.build_on_host([1], 8), 0)


def test_a_pool_is_refused():
    state, pool = jax_sa.init(2, 8, index="scan"), jax_sa.init_pool(64)
    with pytest.raises(ValueError, match="pool: expected None with a ScanState, got a Pool"):
        jax_sa.lookup(state, max_draft=2, pool=pool)
    config = jax_sa.SAConfig(max_seq_len=8, max_slots=2, index="scan")
    with pytest.raises(ValueError, match="pool: expected None with a scan as the index"):
        jax_sa.SuffixAutomatonManager(config, 1, pool=pool)


def test_texts_go_into_a_pool():
    text = texts.random_text(5, 30)
    states = [extend(jax_sa.init(1, 32, index=index), [text]) for index in ("scan", "automaton")]
    pools = [jax_sa.insert_slots(jax_sa.init_pool(64), state, int32([0])) for state in states]
    jax.tree.map(np.testing.assert_array_equal, *pools)


@pytest.mark.parametrize("backend", ["tpu", "rocm", "cpu", "gpu"])
def test_choosing(monkeypatch, backend):
    """Where there are no handlers, an automaton is refused in one line that says what works."""
    from jax_sa import state

    reason = f"jax_sa has no handlers for {backend}" if backend in ("tpu", "rocm") else None
    monkeypatch.setattr(state, "_default_backend", lambda: backend)
    monkeypatch.setattr(state, "unusable_reason", lambda backend: reason)
    auto = jax_sa.init(2, 64, index="auto")
    assert isinstance(auto, jax_sa.State if backend == "cpu" else jax_sa.ScanState)
    assert isinstance(jax_sa.init(2, 64, index="scan"), jax_sa.ScanState)
    if reason is None:
        assert isinstance(jax_sa.init(2, 64), jax_sa.State)
        many = jax.eval_shape(lambda: jax_sa.init(256, 2**20, index="auto"))
        assert isinstance(many, jax_sa.State)
    else:
        with pytest.raises(ValueError, match=r'index: expected "scan", which .*no handlers for'):
            jax_sa.init(2, 64)


def test_an_unknown_index():
    with pytest.raises(ValueError, match="index: expected one of 'automaton', 'scan', 'auto'"):
        jax_sa.init(2, 64, index="tree")
    with pytest.raises(TypeError, match="index: expected one of"):
        jax_sa.init(2, 64, index=None)


def test_sizes():
    shapes = jax.eval_shape(lambda: jax_sa.init(3, 100, index="scan"))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    assert size == 3 * jax_sa.get_state_size(100, index="scan") == 3 * (8 * 100 + 8)
