"""lookup_after against brute force; what it drafts is what would follow if its tokens came next."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import texts
from calls import assert_drafts_nothing, extend, int32, lookup, lookup_after, reference_of
from pool_reference import NO_HIT, Group

import jax_sa

MAX_DRAFT = 6
OPTIONS = [
    {},
    {"occurrence": "first"},
    {"min_match": 3},
    {"max_match": 1},
    {"max_match": 3},
    {"max_match": 9, "occurrence": "first"},
    {"min_match": 2, "max_match": 2},
    {"draft_factor": 0.6},
    {"draft_factor": 2.0, "periodic": False},
]


def expected(text, added, group=None, **options):
    """The match and the tokens of a draft, and its source."""
    drafting = {k: options.pop(k) for k in ("draft_factor", "periodic") if k in options}
    if added:
        match = reference.match_after(text, added, **options)
    else:
        match = reference_of(text).lookup(**options)
    options.pop("occurrence", None)
    hit = NO_HIT if group is None else group.lookup(text + added, **options)[0]
    if hit.length > match.length:
        drafting.pop("periodic", None)
        place = dataclasses.replace(hit, end=hit.end % group.capacity)
        return place, group.draft(hit, MAX_DRAFT, **drafting), jax_sa.Source.POOL
    tokens = reference.draft(text + added, match, MAX_DRAFT, **drafting)
    return match, tokens, jax_sa.Source.OWN if match.length else jax_sa.Source.NONE


def assert_follows(draft, row, text, added, group=None, **options):
    match, tokens, source = expected(text, added, group, **options)
    assert int(draft.match_length[row]) == match.length
    assert int(draft.match_end[row]) == match.end
    assert int(draft.source[row]) == source
    assert int(draft.length[row]) == len(tokens)
    assert draft.tokens[row].tolist() == tokens + [0] * (MAX_DRAFT - len(tokens))


def whole_window(text):
    """Whether the window always held all of the text's repeated suffixes."""
    automaton = reference.Automaton(len(text))
    for token in text:
        automaton.append(token)
        if len(list(automaton.repeated_suffixes())) >= reference.WINDOW:
            return False
    return True


def continuations(text, random):
    """Tokens that may come next: some that did after a suffix, some that never did, none."""
    for end in random.integers(1, len(text) + 1, 4).tolist():
        yield text[end : end + int(random.integers(0, 7))]
    yield random.choice(text, 3).tolist()
    yield [*text[-5:], 77_777]
    yield [77_777, *text[:2]]
    yield text[:40]


@pytest.mark.parametrize("name", texts.SMALL)
def test_small_texts(name):
    whole = texts.SMALL[name]
    random = np.random.default_rng(len(name))
    state, text = jax_sa.init(1, len(whole)), []
    step = 1 + len(whole) // 12
    for n, begin in enumerate(range(0, len(whole), step)):
        block = whole[begin : begin + step]
        block += [0] * (step - len(block))
        state = extend(state, [block], lengths=[len(whole[begin : begin + step])])
        text = whole[: begin + step]
        before = jax.device_get(state)
        rows = list(continuations(text, random))
        options = OPTIONS[n % len(OPTIONS)]
        slots = [0] * len(rows)
        draft = lookup_after(state, rows, slots=slots, max_draft=MAX_DRAFT, **options)
        draft = jax.device_get(draft)
        jax.tree.map(np.testing.assert_array_equal, state, before)
        for row, added in enumerate(rows):
            if whole_window(text):
                assert_follows(draft, row, text, added, **options)
            else:
                assert_occurs(draft, row, text, added, **options)


def assert_occurs(draft, row, text, added, max_match=None, draft_factor=None, **options):
    """Where suffixes lie beyond the window, the match may be shorter, but it is one."""
    length, end = int(draft.match_length[row]), int(draft.match_end[row])
    whole = text + added
    assert length == 0 or text[end - length : end] == whole[len(whole) - length :]
    assert max_match is None or length <= max_match
    assert end < len(whole)
    match = reference.Match(length, end)
    tokens = reference.draft(whole, match, MAX_DRAFT, draft_factor, options.get("periodic", True))
    assert draft.tokens[row, : draft.length[row]].tolist() == tokens
    # What follows the longest of the text's suffixes is found whatever lies beyond the window.
    repeated = reference.longest_repeated_suffix(text)
    tail = text[len(text) - repeated :] + added
    ends = range(len(tail), len(text) + 1)
    if added and max_match is None and len(tail) >= options.get("min_match", 1):
        assert length >= len(tail) or tail not in [text[n - len(tail) : n] for n in ends]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("vocabulary", [2, 4, 50])
def test_random_texts_with_a_pool(vocabulary, options):
    random = np.random.default_rng(vocabulary)
    pool, group = jax_sa.init_pool(256, num_groups=2), Group(256)
    other = random.integers(0, vocabulary, 120).tolist()
    pool = jax_sa.insert(pool, int32([other]), int32([120]), groups=int32([1]))
    group.insert([other])
    sources = set()
    for _ in range(6):
        rows = [random.integers(0, vocabulary, n).tolist() for n in (0, 1, 7, 30, 60)]
        added = [other[n : n + 5] for n in random.integers(0, 100, 5).tolist()]
        state = extend(
            jax_sa.init(5, 64),
            [row + [0] * (60 - len(row)) for row in rows],
            lengths=[len(row) for row in rows],
        )
        draft = jax.device_get(
            lookup_after(
                state,
                added,
                max_draft=MAX_DRAFT,
                pool=pool,
                groups=int32([1, 1, 1, 1, 0]),
                **options,
            )
        )
        for row, text in enumerate(rows):
            assert_follows(draft, row, text, added[row], group if row < 4 else None, **options)
            sources.add(int(draft.source[row]))
    assert options.get("min_match", 1) > 1 or jax_sa.Source.OWN in sources


def test_long_continuations():
    """More tokens than a warp has lanes, of which only the last ones occur."""
    text = list(range(100))
    added = [*range(500, 580), 40, 41]
    state = extend(jax_sa.init(1, 128), [text])
    draft = lookup_after(state, [added], max_draft=MAX_DRAFT)
    assert_follows(draft, 0, text, added)
    assert draft.tokens[0].tolist() == [42, 43, 44, 45, 46, 47]
    capped = lookup_after(state, [added], max_draft=MAX_DRAFT, max_match=1)
    assert_follows(capped, 0, text, added, max_match=1)


def test_a_draft_goes_on_into_the_tokens_and_round_again():
    state = extend(jax_sa.init(1, 16), [[1, 2, 3, 4]])
    draft = lookup_after(state, [[2, 3]], max_draft=MAX_DRAFT)
    assert draft.tokens.tolist() == [[4, 2, 3, 4, 2, 3]]
    assert (int(draft.match_length[0]), int(draft.match_end[0])) == (2, 3)
    once = lookup_after(state, [[2, 3]], max_draft=MAX_DRAFT, periodic=False)
    assert once.tokens.tolist() == [[4, 2, 3, 0, 0, 0]] and once.length.tolist() == [3]


def test_no_tokens_are_a_lookup():
    text = texts.SMALL["random-3"]
    state = extend(jax_sa.init(1, len(text)), [text])
    for options in OPTIONS:
        got = lookup_after(state, [[5, 5]], lengths=[0], max_draft=MAX_DRAFT, **options)
        want = lookup(state, max_draft=MAX_DRAFT, **options)
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_rows_that_draft_nothing():
    """Without a slot, of a length out of range, or of a text that lost tokens."""
    state = extend(jax_sa.init(3, 8), [[1, 2, 1, 2], [1, 2] * 5, [1, 2, 1]])
    rows = [[1], [1], [1], [1], [1]]
    draft = lookup_after(
        state, rows, slots=[-1, 3, 0, 0, 1], lengths=[1, 1, -1, 2, 1], max_draft=MAX_DRAFT
    )
    for row in range(5):
        assert_drafts_nothing(draft, row)
    assert int(lookup_after(state, [[2]], slots=[2], max_draft=2).match_length[0]) == 2


def test_limits():
    state = extend(jax_sa.init(1, 16), [[1, 2, 3, 4]])
    for limit, length in ((-1, 0), (0, 0), (2, 2), (99, MAX_DRAFT)):
        draft = lookup_after(state, [[2]], limits=[limit], max_draft=MAX_DRAFT)
        assert (int(draft.length[0]), int(draft.match_length[0])) == (length, 1)


def test_joined_drafts():
    none = int32([0, 0, 0])
    neural = jax_sa.Draft(int32([[5, 6], [7, 0], [0, 0]]), int32([2, 1, 0]), none, none, none)
    neural = dataclasses.replace(neural, source=int32([3, 3, 0]))
    following = jax_sa.Draft(
        int32([[1, 2, 3], [4, 0, 0], [8, 9, 0]]), int32([3, 1, 2]), none + 4, none + 9, none + 1
    )
    joined = jax_sa.join_drafts(neural, following)
    assert joined.tokens.tolist() == [[5, 6, 1, 2, 3], [7, 4, 0, 0, 0], [0] * 5]
    assert joined.length.tolist() == [5, 2, 0]
    assert joined.match_length.tolist() == joined.match_end.tolist() == [0, 0, 0]
    assert joined.source.tolist() == [3, 3, 0]
    whole = jax_sa.join_drafts(int32([[5, 6]] * 3), following)
    assert whole.tokens.tolist() == [[5, 6, 1, 2, 3], [5, 6, 4, 0, 0], [5, 6, 8, 9, 0]]
    assert whole.source.tolist() == [3, 3, 3]
    merged = jax_sa.merge_drafts(following, whole, threshold=5)
    assert merged.tokens.tolist() == whole.tokens.tolist()


def test_errors():
    state = jax_sa.init(2, 8)
    tokens, lengths = int32([[1], [2]]), int32([1, 1])
    draft = jax_sa.lookup(state, max_draft=2)
    for call, error, message in [
        (
            lambda: jax_sa.lookup_after(state, tokens, int32([1]), max_draft=2),
            ValueError,
            "lengths",
        ),
        (lambda: jax_sa.lookup_after(state, tokens, lengths, max_draft=0), ValueError, "max_draft"),
        (
            lambda: jax_sa.lookup_after(
                jax_sa.init(2, 8, index="scan"), tokens, lengths, max_draft=2
            ),
            TypeError,
            "state: expected a jax_sa.State",
        ),
        (lambda: jax_sa.join_drafts(tokens[:1], draft), ValueError, "neural_draft"),
        (lambda: jax_sa.join_drafts(tokens, tokens), TypeError, "following"),
        (lambda: jax_sa.join_drafts(tokens.astype(jnp.float32), draft), TypeError, "neural_draft"),
    ]:
        with pytest.raises(error, match=message):
            call()
