"""Prompts through the rows of a packed decoder: every answer is that of plain decoding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import packed_model
import pytest
from toy_model import TABLE, VOCABULARY

import jax_sa

PARAMS = jnp.asarray(TABLE)
P, G, CAPACITY = 24, 20, 64


def make_prompts(count, seed=0, longest=P):
    random = np.random.default_rng(seed)
    lengths = random.integers(1, longest + 1, count)
    prompts = np.full((count, P), 3, np.int32)
    for row, length in enumerate(lengths):
        prompts[row, :length] = random.integers(0, VOCABULARY, length)
    return jnp.asarray(prompts), jnp.asarray(lengths, jnp.int32)


def expected(prompts, lengths, limits, stop_tokens=()):
    return [
        packed_model.greedy(prompts[i, : int(lengths[i])], int(limits[i]), stop_tokens)
        for i in range(len(lengths))
    ]


def answers(done):
    return [done.tokens[i, : int(n)].tolist() for i, n in enumerate(done.lengths)]


def caches(rows):
    return {
        "rows": packed_model.row_cache(rows, CAPACITY),
        "pages": packed_model.paged_cache(rows, rows * 12, 4, 12),
        "few-pages": packed_model.paged_cache(rows, 14, 4, 12),
    }


@pytest.mark.parametrize("cache", ["rows", "pages", "few-pages"])
@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("drafts", [True, False])
def test_answers_are_those_of_plain_decoding(rows, cache, drafts):
    prompts, lengths = make_prompts(11)
    limits = jnp.asarray([G, 1, 5, 0, G, G, 7, G, 3, G, G], jnp.int32)
    decoder = jax_sa.PackedDecoder(packed_model.model, stop_tokens=(4,), budget=40)
    done = decoder.generate(
        PARAMS,
        prompts,
        lengths,
        caches(rows)[cache],
        rows=rows,
        max_new_tokens=G,
        state=jax_sa.init(rows, CAPACITY) if drafts else None,
        limits=limits,
    )
    assert done.finished.all()
    assert answers(done) == expected(prompts, lengths, limits, (4,))
    assert (done.lengths == done.steps + done.accepted).all()
    if not drafts:
        assert not done.drafted.any()
    table = getattr(done.cache, "block_table", None)
    if table is not None:
        assert int(table.num_unclaimed) == table.unclaimed.shape[0] - 1


def decode(decoder=None, rows=3, count=7, **options):
    prompts, lengths = make_prompts(count)
    arguments = {
        "cache": caches(rows)["pages"],
        "rows": rows,
        "max_new_tokens": G,
        "state": jax_sa.init(rows, CAPACITY),
    } | options
    decoder = decoder or jax_sa.PackedDecoder(packed_model.model, budget=40)
    return decoder.generate(PARAMS, prompts, lengths, **arguments), (prompts, lengths)


def test_logits_of_the_places_that_are_read():
    lazy = jax_sa.PackedDecoder(packed_model.lazy_model, budget=40)
    done, _ = decode(lazy)
    other, _ = decode()
    assert answers(done) == answers(other)


@pytest.mark.parametrize("width", range(7))
def test_every_width_gives_the_same_answers(width):
    decoder = jax_sa.PackedDecoder(packed_model.model, budget=60)
    widths = decoder.widths(3)
    assert widths == (3, 4, 6, 9, 15, 27, 51)
    costs = jnp.where(jnp.arange(len(widths)) == width, 1.0, jnp.inf).astype(jnp.float32)
    done, (prompts, lengths) = decode(decoder, costs=costs)
    assert answers(done) == expected(prompts, lengths, [G] * 7)


def test_the_least_budget_reads_prompts_and_drafts_nothing_beside_them():
    done, (prompts, lengths) = decode(jax_sa.PackedDecoder(packed_model.model, budget=3))
    assert answers(done) == expected(prompts, lengths, [G] * 7)


def test_drafts_save_calls():
    prompts = jnp.tile(jnp.asarray([[1, 2, 3, 4, 5, 6]], jnp.int32), (4, 4))
    lengths = jnp.full(4, 24, jnp.int32)
    repeat = jnp.asarray([[(b + 1) % VOCABULARY for b in range(VOCABULARY)]] * VOCABULARY)

    def model(params, tokens, rows, positions, cache):
        return jax.nn.one_hot(params[0, tokens], VOCABULARY), cache

    calls = {}
    for name, state in {"none": None, "automaton": jax_sa.init(2, CAPACITY)}.items():
        done = jax_sa.PackedDecoder(model, budget=64).generate(
            repeat.astype(jnp.int32),
            prompts,
            lengths,
            packed_model.row_cache(2, CAPACITY),
            rows=2,
            max_new_tokens=G,
            state=state,
            costs=None if state is None else jnp.ones(7, jnp.float32),
        )
        calls[name] = int(done.calls)
    assert calls["automaton"] < calls["none"] / 2


def test_step_by_step():
    """The caller says which request a row begins; what streams out is the answer."""
    prompts, lengths = make_prompts(6)
    decoder = jax_sa.PackedDecoder(packed_model.model, stop_tokens=(4,), budget=16)
    rows = decoder.init(
        packed_model.paged_cache(2, 12, 4, 12),
        rows=2,
        max_prompt=P,
        state=jax_sa.init(2, CAPACITY),
    )
    waiting, running, texts = list(range(6))[::-1], [None, None], [[] for _ in range(6)]
    while waiting or any(request is not None for request in running):
        for row in range(2):
            if running[row] is None and waiting:
                request = waiting[0]
                mine = (jnp.arange(2) == row).astype(jnp.int32)
                rows, began = decoder.admit(
                    rows,
                    jnp.tile(prompts[request], (2, 1)),
                    mine * lengths[request],
                    jnp.full(2, G, jnp.int32),
                )
                if began[row]:
                    running[row] = waiting.pop(0)
        rows, step = decoder.step(PARAMS, rows)
        for row, request in enumerate(running):
            if request is not None:
                texts[request] += step.tokens[row, : int(step.length[row])].tolist()
                if step.finished[row]:
                    running[row] = None
    assert texts == expected(prompts, lengths, [G] * 6, (4,))


def test_a_row_waits_for_pages():
    """Two rows, but pages for one request at a time: nothing fails and nothing is lost."""
    cache = packed_model.paged_cache(2, 11, 4, 11)
    done, (prompts, lengths) = decode(rows=2, cache=cache)
    assert done.finished.all()
    assert answers(done) == expected(prompts, lengths, [G] * 7)


def test_pages_that_others_hold_end_the_loop():
    cache = packed_model.paged_cache(2, 11, 4, 11)
    table = dataclasses.replace(cache.block_table, num_unclaimed=jnp.asarray(1, jnp.int32))
    done, _ = decode(rows=2, cache=dataclasses.replace(cache, block_table=table))
    assert not done.finished.any() and not done.lengths.any()


def test_under_jit_requests_that_cannot_be_answered_are_told_in_the_result():
    prompts, _ = make_prompts(4)
    lengths = jnp.asarray([5, 0, P + 1, 3], jnp.int32)
    decoder = jax_sa.PackedDecoder(packed_model.model, budget=16)
    run = jax.jit(functools.partial(decoder.generate, rows=2, max_new_tokens=G))
    done = run(PARAMS, prompts, lengths, packed_model.row_cache(2, CAPACITY))
    assert done.finished.tolist() == [True, False, False, True]
    assert done.lengths.tolist() == [G, 0, 0, G]


def test_buffers_serve_the_next_call():
    decoder = jax_sa.PackedDecoder(packed_model.model, budget=40)
    done, _ = decode(decoder)
    first = answers(done)
    again, _ = decode(decoder, cache=done.cache, state=done.state)
    assert answers(again) == first


def test_calibration_measures_every_width():
    prompts, lengths = make_prompts(5)
    decoder = jax_sa.PackedDecoder(packed_model.model, budget=60)
    seen = []
    measured = decoder.calibrate(
        PARAMS,
        prompts,
        lengths,
        packed_model.paged_cache(3, 36, 4, 12),
        rows=3,
        max_new_tokens=G,
        state=jax_sa.init(3, CAPACITY),
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert measured.costs.shape == (7,) and (measured.costs > 0).all()
    assert seen == [(i, 7) for i in range(1, 8)]
    done, (prompts, lengths) = decode(
        decoder, count=5, cache=measured.cache, state=measured.state, costs=measured.costs
    )
    assert answers(done) == expected(prompts, lengths, [G] * 5)
