"""The pool against a slow, obvious one, after every call; what it finds against brute force."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import texts
from calls import extend, int32, lookup, pad
from pool_reference import NO_HIT, SEPARATOR, Group, brute_force

import jax_sa

_insert = jax.jit(jax_sa.insert, donate_argnums=0)


def insert(pool, rows, groups=None, lengths=None):
    width = max(map(len, rows), default=0)
    if lengths is None:
        lengths = list(map(len, rows))
        width = -(-width // 20) * 20  # few widths: each is compiled anew
    tokens = int32(np.reshape(pad(rows, width), (len(rows), width)))
    return _insert(pool, tokens, int32(lengths), groups=int32(groups))


def assert_pool_equals(pool, *groups):
    for i, group in enumerate(groups):
        ring, head, table = group.arrays()
        assert int(pool.head[i]) == head
        assert int(pool.status[i]) == group.status
        np.testing.assert_array_equal(pool.ring[i], ring)
        np.testing.assert_array_equal(pool.table[i], table)


def assert_draft_equals(draft, row, text, group, max_draft, **options):
    """The draft of a text that stands alone in its slot, from its own text or a group's."""
    own = reference.Automaton(max(len(text), 1))
    for token in text:
        own.append(token)
    drafting = {k: options.pop(k) for k in ("draft_factor", "periodic") if k in options}
    occurrence = options.pop("occurrence", "recent")
    match = own.lookup(**options, occurrence=occurrence)
    hit = NO_HIT if group is None else group.lookup(text, **options)[0]
    if hit.length > match.length:
        drafting.pop("periodic", None)
        expected = group.draft(hit, max_draft, **drafting)
        match = dataclasses.replace(hit, end=hit.end % group.capacity)
        source = jax_sa.Source.POOL
    else:
        expected = reference.draft(text, match, max_draft, **drafting)
        source = jax_sa.Source.OWN if match.length else jax_sa.Source.NONE
    assert int(draft.source[row]) == source
    assert int(draft.match_length[row]) == match.length
    assert int(draft.match_end[row]) == match.end
    assert int(draft.length[row]) == len(expected)
    filled = expected + [jax_sa.DRAFT_FILL] * (max_draft - len(expected))
    assert np.asarray(draft.tokens[row]).tolist() == filled


def random_texts(generator, vocabulary, count, longest):
    return [
        generator.integers(0, vocabulary, generator.integers(0, longest + 1)).tolist()
        for _ in range(count)
    ]


@pytest.mark.parametrize("capacity", [1, 2, 3, 4, 5, 8, 12, 63, 64, 4096])
@pytest.mark.parametrize("vocabulary", [1, 2, 3, 50])
def test_inserts(capacity, vocabulary):
    """Many wraps of a small ring, and collisions of a small index."""
    generator = np.random.default_rng(capacity + vocabulary)
    pool, group = jax_sa.init_pool(capacity), Group(capacity)
    for call in range(12):
        rows = random_texts(generator, vocabulary, count=1 + call % 3, longest=40)
        pool = insert(pool, rows)
        group.insert(rows)
        assert_pool_equals(pool, group)


LOOKUPS = [
    {},
    {"min_match": 3},
    {"max_match": 2},
    {"min_match": 2, "max_match": 2},
    {"occurrence": "first"},
    {"draft_factor": 0.6},
    {"draft_factor": 2.0, "periodic": False},
]


@pytest.mark.parametrize("options", LOOKUPS)
@pytest.mark.parametrize("capacity", [1, 7, 64, 4095])
@pytest.mark.parametrize("vocabulary", [2, 3, 50])
def test_lookups(capacity, vocabulary, options):
    generator = np.random.default_rng(capacity * vocabulary)
    pool, group = jax_sa.init_pool(capacity), Group(capacity)
    for _ in range(4):
        rows = random_texts(generator, vocabulary, count=3, longest=40)
        pool = insert(pool, rows)
        group.insert(rows)
        state = jax_sa.init(8, 64)
        queries = random_texts(generator, vocabulary, count=4, longest=40)
        # The beginnings of texts that were inserted, which go on as they did.
        queries += [row[: generator.integers(0, len(row) + 1)] for row in (*rows, rows[0])]
        state = extend(state, pad(queries, 40), lengths=list(map(len, queries)))
        draft = lookup(state, pool=pool, max_draft=9, **options)
        for row, query in enumerate(queries):
            assert_draft_equals(draft, row, query, group, 9, **options)


@pytest.mark.parametrize("name", texts.SMALL)
def test_extend_lookup_of_texts_that_are_in_the_pool(name):
    """Token by token through a text that stands in the pool twice, once to a different end."""
    text = texts.SMALL[name][:120]
    other = [*text[:60], 77, 78]
    pool, group = jax_sa.init_pool(1024), Group(1024)
    pool = insert(pool, [text, other])
    group.insert([text, other])
    state = jax_sa.init(1, len(text))
    step = jax.jit(jax_sa.extend_lookup, static_argnames=("max_draft", "draft_factor"))
    for n, token in enumerate(text):
        state, draft = step(
            state, int32([[token]]), int32([1]), pool=pool, max_draft=40, draft_factor=4.0
        )
        jax.tree.map(
            np.testing.assert_array_equal,
            draft,
            lookup(state, pool=pool, max_draft=40, draft_factor=4.0),
        )
        assert_draft_equals(draft, 0, text[: n + 1], group, 40, draft_factor=4.0)


@pytest.mark.parametrize("vocabulary", [2, 5, 300])
def test_brute_force_agrees_with_the_reference(vocabulary):
    """Where the index is so large that no hashes collide."""
    generator = np.random.default_rng(vocabulary)
    group = Group(2**20)
    group.insert(random_texts(generator, vocabulary, count=4, longest=25))
    queries = random_texts(generator, vocabulary, count=60, longest=20)
    found = [group.lookup(query)[0] for query in queries]
    assert found == [brute_force(group, query) for query in queries]
    assert sum(hit.length > 0 for hit in found) > 5


def test_what_is_found_stands_in_the_pool():
    """Whatever wraps, collides and is forgotten: no draft shows other text or passes its end."""
    generator = np.random.default_rng(0)
    capacity, longest = 32, 12
    pool, log = jax_sa.init_pool(capacity), []
    found = 0
    for _ in range(80):
        rows = random_texts(generator, 3, count=2, longest=longest)
        pool = insert(pool, rows)
        log += [token for row in rows if row for token in [*row, SEPARATOR]]
        standing = log[-capacity:]
        queries = random_texts(generator, 3, count=4, longest=longest)
        draft = lookup(extend(jax_sa.init(4, longest), queries), pool=pool, max_draft=5)
        for row, query in enumerate(queries):
            if int(draft.source[row]) != jax_sa.Source.POOL:
                continue
            found += 1
            length, drafted = int(draft.match_length[row]), int(draft.length[row])
            seen = query[-length:] + draft.tokens[row, :drafted].tolist()
            assert drafted > 0 and SEPARATOR not in seen
            assert any(standing[i : i + len(seen)] == seen for i in range(capacity))
    assert found > 50


@pytest.mark.parametrize("room", [0, 1, 5, 30, 62])
def test_rebasing(room):
    """A pool whose positions are about to exceed int32 goes on as one whose are small."""
    capacity = 64
    start = 2**31 - 2 * capacity
    generator = np.random.default_rng(room)
    pool, group = jax_sa.init_pool(capacity), Group(capacity, start)
    pool = dataclasses.replace(pool, head=int32([start]))
    fresh = jax_sa.init_pool(capacity)
    first = [[1] * (capacity - room)]
    for call in range(12):
        rows = first if call == 0 else random_texts(generator, 3, count=2, longest=20)
        pool, fresh = insert(pool, rows), insert(fresh, rows)
        group.insert(rows)
        assert_pool_equals(pool, group)
        state = extend(jax_sa.init(2, 20), random_texts(generator, 3, count=2, longest=20))
        if call > 3:  # the ring is full of text
            jax.tree.map(
                np.testing.assert_array_equal,
                lookup(state, pool=pool, max_draft=5),
                lookup(state, pool=fresh, max_draft=5),
            )
    assert int(pool.head[0]) < 2**20


def test_one_call_is_as_many():
    generator = np.random.default_rng(7)
    rows = random_texts(generator, 5, count=40, longest=30)
    together = insert(jax_sa.init_pool(2048), rows)
    apart = jax_sa.init_pool(2048)
    for row in rows:
        apart = insert(apart, [row])
    jax.tree.map(np.testing.assert_array_equal, together, apart)


@pytest.mark.parametrize("length", [62, 63, 64, 65, 200])
def test_a_text_as_long_as_the_pool(length):
    """Its last C - 1 tokens stay, and one separator."""
    text = texts.random_text(3, length)
    pool, group = insert(jax_sa.init_pool(64), [text]), Group(64)
    group.insert([text])
    assert_pool_equals(pool, group)
    ring = np.roll(np.asarray(pool.ring[0]), -int(pool.head[0]) % 64)
    kept = text[-63:]
    assert ring[-len(kept) - 1 :].tolist() == [*kept, SEPARATOR]


def test_a_separator_in_a_text_ends_it():
    text = [1, 2, 3, SEPARATOR, 4, 5, 6]
    pool = insert(jax_sa.init_pool(64), [text])
    other = insert(jax_sa.init_pool(64), [[1, 2, 3], [4, 5, 6]])
    jax.tree.map(np.testing.assert_array_equal, pool, other)
    state = extend(jax_sa.init(4, 8), [[9, 2], [9, 3], [3, SEPARATOR], [SEPARATOR, 4]])
    draft = lookup(state, pool=pool, max_draft=4)
    assert draft.tokens.tolist() == [[3, 0, 0, 0], [0] * 4, [0] * 4, [5, 6, 0, 0]]
    assert draft.match_length.tolist() == [1, 0, 0, 1]


def test_groups_never_see_each_other():
    generator = np.random.default_rng(3)
    pool = jax_sa.init_pool(256, num_groups=3)
    groups = [Group(256) for _ in range(3)]
    alone = jax_sa.init_pool(256)
    for _ in range(6):
        rows = random_texts(generator, 4, count=5, longest=30)
        named = generator.integers(-1, 4, len(rows)).tolist()
        pool = insert(pool, rows, groups=named)
        for i, group in enumerate(groups):
            own = [row for row, group in zip(rows, named, strict=True) if group == i]
            group.insert(own)
            if i == 1:
                alone = insert(alone, own) if own else alone
        assert_pool_equals(pool, *groups)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[1:2], y), pool, alone)
    queries = random_texts(generator, 4, count=6, longest=20)
    state = extend(jax_sa.init(6, 20), queries)
    seen = [0, 1, 2, -1, 3, 1]
    draft = lookup(state, pool=pool, groups=int32(seen), max_draft=5)
    for row, query in enumerate(queries):
        group = groups[seen[row]] if 0 <= seen[row] < 3 else None
        assert_draft_equals(draft, row, query, group, 5)


def test_what_is_out_of_range_inserts_nothing_and_says_so():
    rows = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    pool = insert(jax_sa.init_pool(64, num_groups=2), rows, groups=[0, 1, 1], lengths=[3, -1, 2])
    assert pool.status.tolist() == [0, jax_sa.Status.OUT_OF_RANGE]
    first, second = Group(64), Group(64)
    first.insert([[1, 2, 3]])
    second.insert([[7, 8]])
    second.status = jax_sa.Status.OUT_OF_RANGE
    assert_pool_equals(pool, first, second)
    pool = insert(pool, rows, groups=[0, 0, -5], lengths=[4, 2**31 - 1, 3])
    first.status = jax_sa.Status.OUT_OF_RANGE
    assert_pool_equals(pool, first, second)
    assert_pool_equals(insert(pool, []), first, second)


def test_insert_slots():
    """Whole texts, prompts only, responses only; and slots that cannot be inserted."""
    rows = [[1, 2, 3, 4], [5, 6, 7], [], [8, 9, 8, 9]]
    state = extend(jax_sa.init(4, 8), rows)
    prompts = int32([2, 1, 0, 4])
    slots = int32([3, 1, 0, 2])
    call = jax.jit(jax_sa.insert_slots, donate_argnums=0)

    def inserted(expected, **options):
        pool, group = call(jax_sa.init_pool(32), state, slots, **options), Group(32)
        group.insert(expected)
        assert_pool_equals(pool, group)

    inserted([rows[3], rows[1], rows[0]])
    inserted([rows[3], [5], [1, 2]], lengths=prompts[slots])
    inserted([[6, 7], [3, 4]], starts=prompts[slots])
    inserted([[9], [6]], starts=int32([1, 1, 0, 0]), lengths=int32([1, 1, 0, 0]))


def test_insert_slots_that_are_out_of_range():
    state = extend(jax_sa.init(3, 8), [[1, 2, 3], [4, 5], [6]], lengths=[3, 2, -1])
    call = jax.jit(jax_sa.insert_slots, donate_argnums=0)
    pool = jax_sa.init_pool(32, num_groups=5)
    pool = call(
        pool,
        state,
        int32([0, 0, 1, 2, -1, 3, 1]),
        starts=int32([0, 4, 1, 0, 0, 0, -1]),
        lengths=int32([4, 0, 1, 0, 2, 2, 1]),
        groups=int32([0, 1, 2, 3, 4, 4, 2]),
    )
    bad = int(jax_sa.Status.OUT_OF_RANGE)
    assert pool.status.tolist() == [bad, bad, bad, bad, 0]
    assert pool.head.tolist() == [0, 0, 2, 0, 0]


def test_texts_that_lost_tokens_draft_nothing():
    pool = insert(jax_sa.init_pool(64), [[1, 2, 3, 4, 5]])
    state = extend(jax_sa.init(3, 2), [[1, 2, 3], [1, 2], [1]], lengths=[3, 2, 7])
    draft = lookup(state, pool=pool, max_draft=3)
    assert draft.source.tolist() == [0, jax_sa.Source.POOL, 0]
    assert draft.tokens.tolist() == [[0] * 3, [3, 4, 5], [0] * 3]


def test_limits():
    pool = insert(jax_sa.init_pool(64), [[1, 2, 3, 4, 5]])
    state = extend(jax_sa.init(3, 4), [[1, 2]] * 3)
    draft = lookup(state, pool=pool, max_draft=3, limits=[0, 2, 9])
    assert draft.length.tolist() == [0, 2, 3]
    assert draft.source.tolist() == [jax_sa.Source.POOL] * 3
    assert draft.match_length.tolist() == [2, 2, 2]


def test_a_long_draft_ends_with_its_text():
    text = texts.random_text(50, 200)
    pool = insert(jax_sa.init_pool(512), [text, [3] * 100])
    draft = lookup(extend(jax_sa.init(1, 64), [text[:40]]), pool=pool, max_draft=300)
    assert draft.match_length.tolist() == [jax_sa.MAX_POOL_MATCH]
    assert draft.length.tolist() == [160]
    assert draft.tokens[0].tolist() == text[40:] + [jax_sa.DRAFT_FILL] * 140


@pytest.mark.parametrize("seed", range(20))
def test_garbage_is_safe(seed):
    """Whatever a pool holds, lookups return what stands in the ring, and inserts work on."""
    generator = np.random.default_rng(seed)
    extremes = np.array([-(2**31), -1, 0, 1, 63, 64, 65, 2**31 - 65, 2**31 - 1])
    shapes = jax.eval_shape(lambda: jax_sa.init_pool(64, num_groups=4))

    def garbage(leaf):
        values = generator.integers(-(2**31), 2**31, leaf.shape)
        small = generator.integers(-2, 130, leaf.shape)
        chosen = generator.choice(3, leaf.shape)
        return int32(np.choose(chosen, [values, small, generator.choice(extremes, leaf.shape)]))

    pool = jax.tree.map(garbage, shapes)
    state = extend(jax_sa.init(4, 16), np.asarray(pool.ring[:, :12]).tolist())
    for _ in range(3):
        draft = lookup(state, pool=pool, groups=jnp.arange(4, dtype=jnp.int32), max_draft=70)
        assert np.all((draft.length >= 0) & (draft.length <= 70))
        for row in np.flatnonzero(draft.source == jax_sa.Source.POOL):
            ring, drafted = np.asarray(pool.ring[row]), int(draft.length[row])
            begin = int(draft.match_end[row])
            places = (begin + np.arange(drafted)) % 64
            np.testing.assert_array_equal(draft.tokens[row, :drafted], ring[places])
        rows = random_texts(generator, 3, count=4, longest=100)
        pool = insert(pool, rows, groups=[0, 1, 2, 3])
        for i, row in enumerate(rows):
            if row:
                head = int(pool.head[i])
                tail = [int(pool.ring[i, (head - 2 - k) % 64]) for k in range(min(len(row), 63))]
                assert tail[::-1] == row[-63:]


def sharded(call, in_specs, out_specs):
    """`call` over two devices."""
    mesh = jax.sharding.Mesh(np.array(jax.devices("cpu")[:2]), ("data",))
    return jax.jit(jax.shard_map(call, mesh=mesh, in_specs=in_specs, out_specs=out_specs))


SHARDED, SHARED = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()


def test_shards_with_pools_of_their_own():
    """Groups sharded as the slots are; in a loop whose carry holds the pool."""
    rows = random_texts(np.random.default_rng(1), 3, count=4, longest=20)
    tokens, lengths = int32(pad(rows, 20)), int32([len(row) for row in rows])

    def loop(state, pool):
        def body(_, carry):
            state, pool = carry
            draft = jax_sa.lookup(state, pool=pool, max_draft=3)
            state = jax_sa.extend(state, draft.tokens, draft.length)
            return state, jax_sa.insert_slots(pool, state, jnp.arange(2, dtype=jnp.int32))

        return jax.lax.fori_loop(0, 3, body, (state, pool))

    state = extend(jax_sa.init(4, 64), rows)
    pool = jax_sa.insert(jax_sa.init_pool(256, num_groups=2), tokens, lengths, groups=lengths % 2)
    together = sharded(loop, (SHARDED, SHARDED), (SHARDED, SHARDED))(state, pool)
    for shard in range(2):
        own = jax.tree.map(lambda x: x[2 * shard : 2 * shard + 2], state)  # noqa: B023
        group = jax.tree.map(lambda x: x[shard : shard + 1], pool)  # noqa: B023
        for got, expected in zip(together, loop(own, group), strict=True):
            part = jax.tree.map(
                lambda x, y: x[shard * len(y) : (shard + 1) * len(y)],  # noqa: B023
                got,
                expected,
            )
            jax.tree.map(np.testing.assert_array_equal, part, expected)


def test_shards_that_read_one_pool():
    rows = random_texts(np.random.default_rng(2), 3, count=4, longest=20)
    state = extend(jax_sa.init(4, 64), rows)
    pool = insert(jax_sa.init_pool(256, num_groups=2), rows)
    groups = int32([0, 1, 0, 0])

    def find(state, pool, groups):
        return jax_sa.lookup(state, pool=pool, groups=groups, max_draft=3)

    got = sharded(find, (SHARDED, SHARED, SHARDED), SHARDED)(state, pool, groups)
    jax.tree.map(np.testing.assert_array_equal, got, find(state, pool, groups))


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_texts_of_a_state_that_is_split_over_devices(kind):
    """insert_slots wants it whole, and says so; what read_tokens reads of it can be inserted."""
    rows = random_texts(np.random.default_rng(3), 3, count=4, longest=20)
    lengths, slots = int32([len(row) for row in rows]), jnp.arange(4, dtype=jnp.int32)
    state, pool = extend(jax_sa.init(4, 64), rows), jax_sa.init_pool(256)
    expected = jax_sa.insert_slots(pool, state, slots)
    types = (getattr(jax.sharding.AxisType, kind),)
    mesh = jax.make_mesh((2,), ("data",), axis_types=types, devices=jax.devices("cpu")[:2])
    split, whole = (jax.sharding.NamedSharding(mesh, spec) for spec in (SHARDED, SHARED))
    state = jax.device_put(state, split)
    pool, slots, lengths = jax.device_put((pool, slots, lengths), whole)

    @functools.partial(jax.jit, out_shardings=whole)
    def insert_read(pool, state, slots, lengths):
        texts = jax_sa.read_tokens(state, jnp.zeros_like(slots), length=20, slots=slots)
        return jax_sa.insert(pool, texts, lengths)

    got = insert_read(pool, state, slots, lengths)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    error = ValueError if kind == "Explicit" else jax.errors.JaxRuntimeError
    with pytest.raises(error, match=r"state.tokens: expected .* over nothing"):
        jax.jit(jax_sa.insert_slots)(pool, state, slots)


def test_shards_cannot_write_one_pool():
    """Each would go on with another pool, and nobody would know."""
    with pytest.raises(ValueError, match=r"pool: expected one that varies over .*\['data'\]"):
        sharded(
            lambda pool, tokens, lengths: jax_sa.insert(pool, tokens, lengths),
            (SHARED, SHARDED, SHARDED),
            SHARED,
        )(jax_sa.init_pool(64), int32([[1], [2]]), int32([1, 1]))


@pytest.mark.parametrize(
    "error, message, call",
    [
        (ValueError, "capacity", lambda: jax_sa.init_pool(0)),
        (TypeError, "capacity", lambda: jax_sa.get_pool_size(4.0)),
        (ValueError, "num_groups", lambda: jax_sa.init_pool(4, num_groups=0)),
        (TypeError, "pool: expected a jax_sa.Pool", lambda: _lookup(pool=jax_sa.init(1, 4))),
        (ValueError, "groups: expected a pool", lambda: _lookup(groups=int32([0]))),
        (ValueError, "groups", lambda: _lookup(pool=jax_sa.init_pool(4), groups=int32([0, 0]))),
        (TypeError, "groups", lambda: _lookup(pool=jax_sa.init_pool(4), groups=jnp.ones(1))),
        (ValueError, "lengths", lambda: _put(int32([[1]]), int32([1, 1]))),
        (TypeError, "tokens", lambda: _put(jnp.ones((1, 1)), int32([1]))),
        (ValueError, "groups", lambda: _put(int32([[1]]), int32([1]), groups=int32([]))),
        (ValueError, "pool.table", lambda: _lookup(pool=_broken())),
        (ValueError, "slots", lambda: _put_slots(slots=int32([[0]]))),
        (ValueError, "starts", lambda: _put_slots(starts=int32([0, 1]))),
        (TypeError, "state", lambda: jax_sa.insert_slots(jax_sa.init_pool(4), None, int32([0]))),
        (TypeError, "pool", lambda: jax_sa.insert_slots(None, jax_sa.init(1, 4), int32([0]))),
        (TypeError, "state", lambda: jax_sa.insert(None, int32([[1]]), int32([1]))),
    ],
)
def test_errors(error, message, call):
    with pytest.raises(error, match=message):
        call()


def _lookup(**options):
    return jax_sa.lookup(jax_sa.init(1, 4), max_draft=1, **options)


def _put(tokens, lengths, **options):
    return jax_sa.insert(jax_sa.init_pool(4), tokens, lengths, **options)


def _put_slots(slots=None, **options):
    slots = int32([0]) if slots is None else slots
    return jax_sa.insert_slots(jax_sa.init_pool(4), jax_sa.init(1, 4), slots, **options)


def _broken():
    pool = jax_sa.init_pool(8)
    return dataclasses.replace(pool, table=pool.table[..., 1:])


def test_sizes():
    pool = jax_sa.init_pool(64, num_groups=3)
    assert (pool.capacity, pool.num_groups) == (64, 3)
    assert 3 * jax_sa.get_pool_size(64) == sum(leaf.nbytes for leaf in jax.tree.leaves(pool))
    assert jax_sa.get_pool_size(2**20) == 16 * 2**20 + 8
