"""Prompts through the rows of a packed decoder: every answer is that of plain decoding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import packed_model
import pytest
from packed_model import all_greedy, answers
from toy_model import TABLE, VOCABULARY

import jax_sa
from jax_sa import packed_blocks, packed_queue

PARAMS = jnp.asarray(TABLE)
N, P, G, CAPACITY = 11, 24, 20, 64
STOP = 4
# One decoder, few shapes: compiled code is shared.
DECODER = jax_sa.PackedDecoder(packed_model.model, stop_tokens=(STOP,), budget=40)
WIDTHS = DECODER.widths(3)
FORCED = jnp.ones(len(WIDTHS), jnp.float32)  # costs at which every draft is worth verifying
# What has a program of its own, and does not look at its blocks, has few.
SMALL = dataclasses.replace(DECODER, budget=9)
SMALL_FORCED = jnp.ones(len(SMALL.widths(3)), jnp.float32)
PROMPTS, LENGTHS = packed_model.make_prompts(N, P)
ALL = jnp.full(N, G, jnp.int32)
LIMITS = jnp.asarray([G, 1, 5, 0, G, G, 7, G, 3, G, G], jnp.int32)


def make_cache(kind, rows):
    """Rows, pages for all rows, or pages for little more than the longest request."""
    if kind == "rows":
        return packed_model.row_cache(rows, CAPACITY)
    return packed_model.paged_cache(rows, {"pages": rows * 12, "few-pages": 14}[kind], 4, 12)


def decode(decoder=DECODER, **changed):
    arguments = {
        "prompts": PROMPTS,
        "prompt_lengths": LENGTHS,
        "cache": make_cache("few-pages", 3),
        "rows": 3,
        "max_new_tokens": G,
        "state": jax_sa.init(3, CAPACITY),
    } | changed
    return decoder.generate(PARAMS, **arguments)


def assert_plain(done, limits=ALL, prompts=PROMPTS, lengths=LENGTHS, stop_tokens=(STOP,)):
    """The answers of plain decoding, everything told rightly, and no page lost."""
    assert answers(done) == all_greedy(prompts, lengths, limits, stop_tokens)
    assert done.finished.all()
    assert (done.lengths == done.steps + done.accepted).all()
    assert (done.accepted <= done.drafted).all()
    assert not done.tokens[jnp.arange(G)[None] >= done.lengths[:, None]].any()
    table = getattr(done.cache, "block_table", None)
    if table is not None:
        free = table.unclaimed[: int(table.num_unclaimed)]
        assert sorted(free.tolist()) == list(range(1, table.unclaimed.size))


@pytest.mark.parametrize(
    ("rows", "cache", "drafts"),
    [
        (1, "few-pages", True),
        (3, "rows", True),
        pytest.param(3, "pages", True, marks=pytest.mark.slow),
        (3, "few-pages", True),
        (8, "pages", True),
        (3, "rows", False),
        (8, "few-pages", False),
    ],
)
def test_answers_are_those_of_plain_decoding(rows, cache, drafts):
    state = jax_sa.init(rows, CAPACITY) if drafts else None
    done = decode(rows=rows, cache=make_cache(cache, rows), state=state, limits=LIMITS)
    assert_plain(done, LIMITS)
    assert bool(done.drafted.any()) == drafts


def test_answers_where_the_block_changes():
    """Plain steps and others take turns, each in a loop of its own."""
    costs = jnp.asarray([1.0, *[2.5] * (len(WIDTHS) - 1)], jnp.float32)
    done = decode(limits=LIMITS, costs=costs)
    assert_plain(done, LIMITS)
    assert (done.steps > done.accepted).any() and done.drafted.any()


@pytest.mark.parametrize("kind", ["pages", "few-pages"])
def test_prompts_that_begin_together(monkeypatch, kind):
    """When two of four rows have ended, or as many as prompts are left, or all that are at work."""
    limits = LIMITS.at[0].set(3).at[1].set(9)

    def run(decoder):
        buffers = {"cache": make_cache(kind, 4), "state": jax_sa.init(4, CAPACITY)}
        return decode(decoder, rows=4, limits=limits, **buffers)

    at_once = run(SMALL)
    monkeypatch.setattr(packed_queue, "REFILL_SHARE", 2)
    decoder = dataclasses.replace(SMALL, model=lambda *arguments: packed_model.model(*arguments))
    done = run(decoder)  # which is traced anew
    assert_plain(done, limits)
    assert done.calls != at_once.calls


def test_fewer_prompts_than_rows():
    limits = jnp.where(jnp.arange(N) < 2, ALL, 0)
    arguments = {"cache": make_cache("pages", 8), "state": jax_sa.init(8, CAPACITY)}
    assert_plain(decode(rows=8, limits=limits, **arguments), limits)


@pytest.mark.parametrize("seed", range(4))
def test_drafts_that_are_all_verified(seed):
    """Costs at which every draft is worth it: some end at a limit, some in a stop token."""
    prompts, lengths = packed_model.make_prompts(N, P, seed)
    limits = jnp.asarray(np.random.default_rng(seed).integers(1, G + 1, N), jnp.int32)
    done = decode(prompts=prompts, prompt_lengths=lengths, limits=limits, costs=FORCED)
    assert_plain(done, limits, prompts, lengths)
    assert done.accepted.any()


def test_a_stop_token_as_the_first_new_token():
    prompts, lengths = packed_model.make_prompts(400, P, seed=1)
    first = all_greedy(prompts, lengths, jnp.ones(400, jnp.int32))
    chosen = np.flatnonzero(np.asarray(first)[:, 0] == STOP)[:N]
    prompts, lengths = prompts[chosen], lengths[chosen]
    done = decode(prompts=prompts, prompt_lengths=lengths)
    assert_plain(done, ALL, prompts, lengths)
    assert done.tokens[:, 0].tolist() == [STOP] * N and done.lengths.tolist() == [1] * N


def test_no_limit_above_zero_calls_no_model():
    done = decode(limits=jnp.zeros(N, jnp.int32))
    assert_plain(done, 0 * ALL)
    assert done.calls == 0


def test_numpys_arrays_are_jaxs():
    done = decode(
        prompts=np.asarray(PROMPTS),
        prompt_lengths=np.asarray(LENGTHS),
        limits=np.asarray(LIMITS),
        costs=np.asarray(FORCED),
    )
    assert_plain(done, LIMITS)


def test_logits_of_the_places_that_are_read():
    assert_plain(decode(dataclasses.replace(SMALL, model=packed_model.lazy_model)))


@pytest.mark.parametrize(("backend", "widths"), [("cpu", (3, 6, 12, 24, 40)), ("gpu", (3, 40))])
def test_widths(monkeypatch, backend, widths):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert DECODER.widths(3) == widths
    assert DECODER.widths(3, drafts=False) == (3,)
    assert dataclasses.replace(DECODER, budget=1024).widths(3)[-1] == 3 * 33
    assert dataclasses.replace(DECODER, budget=3).widths(3) == (3,)


def forced(index, other=np.inf):
    """Costs at which only one width is worth anything."""
    return jnp.where(jnp.arange(len(WIDTHS)) == index, 1.0, other).astype(jnp.float32)


@pytest.mark.parametrize("index", range(len(WIDTHS)))
def test_costs_choose_the_width_and_never_the_answers(index):
    done = decode(costs=forced(index))
    assert_plain(done)
    assert (int(done.drafted.sum()) > 0) == (index > 0)  # nor are any verified beside prompts


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CountingCache:
    """Rows' tokens, and int32[M] the steps of each of `BLOCKS`."""

    rows: packed_model.RowCache
    steps: jax.Array


BLOCKS = (3, 3 + 128, 9 + 128, 9 + 384, 1024)
"""Without prompts and drafts; of those with prompts, without drafts, with them, and longer ones."""


def counting_model(params, tokens, rows, positions, cache):
    logits, written = packed_model.model(params, tokens, rows, positions, cache.rows)
    is_block = [block == tokens.size for block in BLOCKS]
    return logits, CountingCache(written, cache.steps + jnp.asarray(is_block, jnp.int32))


@pytest.mark.parametrize(
    ("width", "drafts", "expected"),
    [
        (P, True, [True, True, True, False, False]),
        (P, False, [True, True, False, False, False]),
        (200, True, [False, True, True, True, False]),
        (200, False, [True, True, False, True, False]),
        (600, False, [True, True, False, True, True]),
    ],
)
def test_prompts_are_read_in_the_block_that_suits(monkeypatch, width, drafts, expected):
    """Three rows read at once at first, and one by one later."""
    monkeypatch.setattr(packed_blocks, "_counts_each_token", lambda: True)
    decoder = dataclasses.replace(DECODER, model=counting_model, budget=1024)
    limits = ALL.at[:3].set(jnp.asarray([5, 10, 15], jnp.int32))
    lengths = LENGTHS + width - P
    prompts = jnp.pad(PROMPTS, ((0, 0), (width - P, 0)), constant_values=7)
    costs = jnp.ones(len(decoder.widths(3)), jnp.float32)
    no_steps = jnp.zeros(len(BLOCKS), jnp.int32)
    done = decode(
        decoder,
        prompts=prompts,
        prompt_lengths=lengths,
        limits=limits,
        cache=CountingCache(packed_model.row_cache(3, width + G), no_steps),
        state=jax_sa.init(3, width + G),
        costs=costs if drafts else costs.at[1:].set(jnp.inf),
    )
    assert answers(done) == all_greedy(prompts, lengths, limits, (STOP,))
    assert (done.cache.steps > 0).tolist() == expected
    assert int(done.drafted.sum() > 0) == drafts


@pytest.mark.parametrize("cost", [0.0, -1.0, np.nan, np.inf])
def test_widths_without_a_cost_are_not_used(cost):
    """Nor any but the least, where none has one."""
    widest = len(WIDTHS) - 1
    done, same = decode(costs=forced(widest, cost)), decode(costs=forced(widest))
    assert_plain(done)
    assert done.drafted.tolist() == same.drafted.tolist()
    done, same = decode(costs=jnp.full(len(WIDTHS), cost, jnp.float32)), decode(costs=forced(0))
    assert_plain(done)
    assert done.drafted.tolist() == same.drafted.tolist()


def test_the_least_budget_reads_long_prompts():
    """Nothing is drafted there but in the places of idle rows."""
    done = decode(dataclasses.replace(DECODER, budget=3), costs=jnp.ones(1, jnp.float32))
    assert_plain(done)


def test_drafts_save_calls():
    """A text that counts up and begins again; nothing but a limit ends it."""
    repeat = (PARAMS * 0 + jnp.arange(1, VOCABULARY + 1, dtype=jnp.int32)[None]) % VOCABULARY

    def model(params, tokens, rows, positions, cache):
        return jax.nn.one_hot(repeat[0, tokens], VOCABULARY), cache

    prompts = jnp.broadcast_to(jnp.arange(P, dtype=jnp.int32) % VOCABULARY, (4, P))
    decoder = jax_sa.PackedDecoder(model, budget=18)
    arguments = {"prompts": prompts, "prompt_lengths": jnp.full(4, P, jnp.int32)}
    plain = decode(decoder, **arguments, state=None)
    costs = jnp.ones(len(decoder.widths(3)), jnp.float32)
    drafted = decode(decoder, **arguments, costs=costs)
    assert answers(plain) == answers(drafted)
    assert 2 * int(drafted.calls) < int(plain.calls)


def test_a_state_without_room_is_an_error():
    need = int((LENGTHS + LIMITS).max())
    assert_plain(decode(SMALL, state=jax_sa.init(3, need), limits=LIMITS), LIMITS)
    message = f"state: expected a max_seq_len of at least {need}, .* got {need - 1}"
    with pytest.raises(ValueError, match=message):
        decode(state=jax_sa.init(3, need - 1), limits=LIMITS)
    with pytest.raises(ValueError, match=f"at least {P + G}, for prompt and new tokens, got 43"):
        jax.jit(lambda lengths: decode(prompt_lengths=lengths, state=jax_sa.init(3, 43)))(LENGTHS)


def test_a_request_without_room_in_the_state_is_an_error():
    rows = DECODER.init(make_cache("rows", 2), rows=2, max_prompt=P, state=jax_sa.init(2, 16))
    prompts, limits = PROMPTS[:2], jnp.asarray([9, 99], jnp.int32)
    rows, began = DECODER.admit(rows, prompts, jnp.asarray([7, 0], jnp.int32), limits)
    assert began.tolist() == [True, False]
    with pytest.raises(ValueError, match="state: expected a max_seq_len of at least 17"):
        DECODER.admit(rows, prompts, jnp.asarray([0, 8], jnp.int32), jnp.full_like(limits, 9))


def few_free_pages(count):
    """The cache with few pages, of which so many are free; another holds the others."""
    cache = make_cache("few-pages", 3)
    table = dataclasses.replace(cache.block_table, num_unclaimed=jnp.asarray(count, jnp.int32))
    return dataclasses.replace(cache, block_table=table)


def test_a_row_waits_for_pages():
    """Three rows, but pages for one request at a time, each of which takes them all."""
    prompts = packed_model.make_prompts(N, P)[0]
    lengths = jnp.full(N, P, jnp.int32)
    done = decode(prompts=prompts, prompt_lengths=lengths, cache=few_free_pages((P + G) // 4))
    assert done.finished.all() and (P + G) % 4 == 0
    assert answers(done) == all_greedy(prompts, lengths, ALL, (STOP,))
    assert done.cache.block_table.num_unclaimed == (P + G) // 4


def test_pages_that_others_hold_end_the_loop():
    done = decode(cache=few_free_pages(1))
    assert answers(done) == [[]] * N
    assert not done.finished.any() and done.calls == 0


def test_buffers_serve_the_next_call():
    done = decode()
    again = decode(cache=done.cache, state=done.state)
    assert_plain(again)
    assert answers(again) == answers(done)


def test_what_is_not_donated_stays():
    sampling = jax_sa.Sampling(jax.random.key(0), temperature=jnp.zeros(N, jnp.float32))
    decode(dataclasses.replace(DECODER, budget=3), sampling=sampling)
    assert not any(x.is_deleted() for x in (PROMPTS, LENGTHS, sampling.key, sampling.temperature))


def sampled_probabilities(logits, temperature, top_k, top_p):
    """float64[V, V] the next token's distribution after each token, one number at a time."""
    rows = []
    for row in np.asarray(logits, np.float64):
        if temperature == 0:
            rows.append(np.eye(row.size)[row.argmax()])
            continue
        order = np.argsort(-row)[:top_k]
        p = np.zeros(row.size)
        p[order] = np.exp(row[order] / temperature)
        p /= p.sum()
        keep = int(np.sum(np.cumsum(p[order]) - p[order] < top_p))
        p[order[keep:]] = 0
        rows.append(p / p.sum())
    return np.stack(rows)


def test_sampled_answers_have_the_models_distribution():
    """Frequencies of whole texts of 3 tokens, with drafts that are often wrong, and a sampling of
    its own for each prompt."""
    kinds = [(0.7, 3, 1.0), (1.5, 2, 1.0), (1.1, 3, 0.8), (0.0, 3, 1.0)]
    count, rows, vocabulary = 24_000, 400, 3
    logits = jnp.asarray([[0.3, 1.0, 0.0], [1.2, -0.5, 0.4], [0.1, 0.6, 0.5]])

    def chain(params, tokens, rows, positions, cache):
        return params[tokens], cache

    kind = np.arange(count) % len(kinds)
    columns = list(zip(*kinds, strict=True))
    dtypes = (jnp.float32, jnp.int32, jnp.float32)
    options = [jnp.asarray(c, t)[kind] for c, t in zip(columns, dtypes, strict=True)]
    decoder = jax_sa.PackedDecoder(chain, max_draft=4, budget=2 * rows)
    done = decoder.generate(
        logits,
        jnp.tile(jnp.asarray([[0, 1, 2, 0, 1, 0]], jnp.int32), (count, 1)),
        jnp.full(count, 6, jnp.int32),
        packed_model.row_cache(1, 1),
        rows=rows,
        max_new_tokens=3,
        state=jax_sa.init(rows, 9),
        sampling=jax_sa.Sampling(jax.random.key(1), *options),
        costs=jnp.ones(len(decoder.widths(rows)), jnp.float32),
    )
    accepted, drafted = int(done.accepted.sum()), int(done.drafted.sum())
    assert count // 5 < accepted < drafted - count // 5
    for k, (temperature, top_k, top_p) in enumerate(kinds):
        p = sampled_probabilities(logits, temperature, top_k, top_p)
        counts = np.zeros((vocabulary,) * 3)
        np.add.at(counts, tuple(np.asarray(done.tokens)[kind == k].T), 1)
        expected = counts.sum() * p[0][:, None, None] * p[:, :, None] * p[None]
        assert not counts[expected == 0].any()
        possible = expected > 0
        chi_square = np.sum((counts - expected)[possible] ** 2 / expected[possible])
        # Once in 2000, by Wilson and Hilferty's approximation.
        freedom = max(possible.sum() - 1, 1)
        assert (
            chi_square < freedom * (1 - 2 / (9 * freedom) + 3.3 * np.sqrt(2 / (9 * freedom))) ** 3
        )


def calibrate(decoder=DECODER, cache="few-pages", **changed):
    arguments = {"prompts": PROMPTS, "prompt_lengths": LENGTHS, "max_new_tokens": G} | changed
    state = jax_sa.init(3, CAPACITY)
    return decoder.calibrate(PARAMS, cache=make_cache(cache, 3), rows=3, state=state, **arguments)


def test_calibration_measures_every_width():
    seen = []
    measured = calibrate(on_progress=lambda done, total: seen.append((done, total)))
    assert measured.costs.shape == (len(WIDTHS),) and (measured.costs > 0).all()
    assert seen == [(i + 1, len(WIDTHS)) for i in range(len(WIDTHS))]
    done = decode(cache=measured.cache, state=measured.state, costs=measured.costs)
    assert_plain(done)


def test_calibration_for_a_pool_compiles_what_runs_and_leaves_the_pool():
    pool = decode(SMALL, pool=jax_sa.init_pool(1024), costs=SMALL_FORCED).pool
    before = jax.tree.map(np.array, pool)
    measured = calibrate(SMALL, pool=pool)
    jax.tree.map(np.testing.assert_array_equal, pool, before)
    programs = jax_sa.PackedDecoder._run._cache_size()
    buffers = {"cache": measured.cache, "state": measured.state, "pool": pool}
    assert_plain(decode(SMALL, costs=measured.costs, **buffers))
    assert jax_sa.PackedDecoder._run._cache_size() == programs


def test_calibration_with_answers_that_end_at_once_is_an_error():
    def model(params, tokens, rows, positions, cache):
        return jax.nn.one_hot(0 * tokens + STOP, VOCABULARY), cache

    with pytest.raises(ValueError, match="prompts: expected answers of several steps"):
        calibrate(dataclasses.replace(DECODER, model=model, max_draft=1, budget=3))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"max_new_tokens": 7}, ValueError, r"max_new_tokens: expected an int in \[8, "),
        ({"prompts": PROMPTS[:0]}, ValueError, r"prompts: expected a prompt and .*\[0, 24\]"),
        ({"prompt_lengths": 0 * LENGTHS}, ValueError, "prompt_lengths: expected 1 to 24 tokens"),
        ({"max_new_tokens": 99}, ValueError, "fit the 48 tokens of a row's pages, got 21 . 99 in"),
    ],
)
def test_calibration_errors(changed, error, message):
    with pytest.raises(error, match=message):
        calibrate(**changed)


def sampling(**options):
    return jax_sa.Sampling(jax.random.key(0), **options)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"prompts": PROMPTS[:0]}, ValueError, r"prompts: expected a prompt and .*got \[0, 24\]"),
        ({"prompts": PROMPTS[:, :0]}, ValueError, r"prompts: expected .* token .*got \[11, 0\]"),
        ({"prompts": PROMPTS.tolist()}, TypeError, r"prompts: expected int32\[N, P\], got list"),
        ({"prompts": np.ones((N, P))}, TypeError, r"prompts: expected int32\[N, P\], got float64"),
        ({"prompts": PROMPTS[0]}, ValueError, r"prompts: expected int32\[N, P\], got int32\[24\]"),
        ({"prompt_lengths": LENGTHS[:3]}, ValueError, r"prompt_lengths: expected int32\[11,\]"),
        ({"prompt_lengths": LENGTHS.tolist()}, TypeError, "prompt_lengths: expected .*got list"),
        ({"prompt_lengths": LENGTHS.at[2].set(0)}, ValueError, "1 to 24 tokens, got 0 in prompt 2"),
        ({"prompt_lengths": LENGTHS.at[4].set(25)}, ValueError, "got 25 in prompt 4"),
        ({"max_new_tokens": 48}, ValueError, "fit the 48 tokens of a row's pages, got 21 . 48 in"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens: expected an int"),
        ({"max_new_tokens": "9"}, TypeError, "max_new_tokens: expected an int"),
        ({"limits": LIMITS[:3]}, ValueError, r"limits: expected int32\[11,\]"),
        ({"limits": LIMITS.tolist()}, TypeError, "limits: expected .*got list"),
        ({"rows": 0}, ValueError, "rows: expected an int"),
        ({"rows": 2.0}, TypeError, "rows: expected an int"),
        ({"rows": 41}, ValueError, "budget: expected at least 41, one for each row, got 40"),
        ({"rows": 4}, ValueError, "state: expected 4 slots, got 3"),
        ({"rows": 4, "state": None}, ValueError, "cache.block_table: expected 5 slots, got 4"),
        ({"state": {}}, TypeError, "state: expected a jax_sa.State"),
        (
            {"costs": FORCED[1:]},
            ValueError,
            rf"costs: expected float32\[{len(WIDTHS)},\], got float32\[{len(WIDTHS) - 1}\]",
        ),
        ({"costs": [1.0]}, TypeError, rf"costs: expected float32\[{len(WIDTHS)},\], got list"),
        ({"sampling": 0.7}, TypeError, "sampling: expected a jax_sa.Sampling"),
        (
            {"sampling": sampling(temperature=jnp.ones(3, jnp.float32))},
            ValueError,
            r"temperature: expected float32\[11,\], got float32\[3\]",
        ),
    ],
)
def test_errors(changed, error, message):
    with pytest.raises(error, match=message):
        decode(**changed)


def test_a_block_table_of_another_type_is_an_error():
    cache = dataclasses.replace(make_cache("few-pages", 3), block_table=jnp.zeros(3))
    with pytest.raises(TypeError, match="cache.block_table: expected a jax_sa.cache_schema.Block"):
        decode(cache=cache)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": None}, TypeError, "model: expected a function, got NoneType"),
        ({"stop_tokens": [2]}, TypeError, r"stop_tokens: expected a tuple of ints, got \[2\]"),
        ({"stop_tokens": ("a",)}, TypeError, "stop_tokens: expected an int .*got 'a'"),
        ({"budget": 0}, ValueError, "budget: expected an int"),
        ({"max_draft": 0}, ValueError, "max_draft: expected an int"),
    ],
)
def test_errors_of_options(options, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(DECODER, **options)


def assert_texts_in_pool(pool, group, expected):
    """The ring of a group, which has not wrapped, holds these texts, in any order."""
    ring = pool.ring[group, : int(pool.head[group])].tolist()
    texts, text = [], []
    for token in ring:
        if token == jax_sa.SEPARATOR:
            texts.append(text)
            text = []
        else:
            text.append(token)
    assert text == [] and sorted(texts) == sorted(expected)


@pytest.mark.parametrize("inserts", ["text", "response", "nothing"])
def test_texts_that_end_go_into_the_pool(inserts):
    decoder = dataclasses.replace(SMALL, inserts=inserts)
    groups = jnp.asarray([i % 3 - 1 for i in range(N)], jnp.int32)
    pool = jax_sa.init_pool(1024, num_groups=2)
    done = decode(decoder, pool=pool, groups=groups, limits=LIMITS, costs=SMALL_FORCED)
    assert_plain(done, LIMITS)
    prompts = [row[:length] for row, length in zip(PROMPTS.tolist(), LENGTHS, strict=True)]
    for group in range(2):
        own = [i for i in range(N) if groups[i] == group and LIMITS[i] > 0]
        texts = [(prompts[i] if inserts == "text" else []) + answers(done)[i] for i in own]
        assert_texts_in_pool(done.pool, group, [] if inserts == "nothing" else texts)


def test_prompts_that_come_again_take_fewer_steps():
    first = decode(SMALL, pool=jax_sa.init_pool(1024), costs=SMALL_FORCED)
    again = decode(SMALL, pool=first.pool, costs=SMALL_FORCED)
    assert_plain(again)
    assert 3 * int(again.steps.sum()) < 2 * int(first.steps.sum())
    groups = jnp.full(N, -1, jnp.int32)
    apart = decode(SMALL, pool=again.pool, groups=groups, costs=SMALL_FORCED)
    assert apart.steps.sum() > again.steps.sum()


def test_steps_with_a_pool():
    """Requests one by one, each in its group; a released one stays out of the pool."""
    costs = jnp.ones(len(SMALL.widths(2)), jnp.float32)
    pool = jax_sa.init_pool(256, num_groups=2)
    rows = SMALL.init(
        make_cache("rows", 2), rows=2, max_prompt=P, state=jax_sa.init(2, CAPACITY), pool=pool
    )
    for first, groups in ((0, [0, 1]), (2, None)):
        rows, began = SMALL.admit(
            rows,
            PROMPTS[first : first + 2],
            LENGTHS[first : first + 2],
            jnp.asarray([4, 40], jnp.int32),
            None if groups is None else jnp.asarray(groups, jnp.int32),
        )
        assert began.all()
        while not rows.idle[0]:
            rows, _ = SMALL.step(PARAMS, rows, costs)
        rows = SMALL.release(rows, ~rows.idle)
    greedy = all_greedy(PROMPTS, LENGTHS, jnp.full(N, 4, jnp.int32), (STOP,))
    texts = [PROMPTS[i, : LENGTHS[i]].tolist() + greedy[i] for i in (0, 2)]
    assert_texts_in_pool(rows.pool, 0, texts)
    assert int(rows.pool.head[1]) == 0


def test_pools_are_checked():
    pool = jax_sa.init_pool(64)
    for changed, error, message in (
        ({"pool": pool, "state": None}, ValueError, "pool: expected a state"),
        ({"pool": 3}, TypeError, "pool: expected a jax_sa.Pool"),
        ({"groups": jnp.zeros(N, jnp.int32)}, ValueError, "groups: expected a pool"),
        ({"pool": pool, "groups": jnp.zeros(2, jnp.int32)}, ValueError, "groups: expected int32"),
    ):
        with pytest.raises(error, match=message):
            decode(**changed)
    with pytest.raises(ValueError, match="inserts: expected one of 'text', 'response', 'nothing'"):
        dataclasses.replace(DECODER, inserts="all")
