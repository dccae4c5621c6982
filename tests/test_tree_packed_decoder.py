"""Packed steps with trees of drafts: every answer is that of plain decoding, in place."""

import dataclasses
import functools

import graphs
import jax
import jax.numpy as jnp
import numpy as np
import packed_model
import pytest
import test_gpu_program
import toy_model
from test_packed_decoder import (
    CAPACITY,
    DECODER,
    LIMITS,
    PARAMS,
    STOP,
    G,
    N,
    P,
    assert_plain,
    decode,
    make_cache,
)
from test_packed_programs import assert_in_place

import jax_sa
from jax_sa import packed_blocks
from jax_sa._branches import BRANCHES_COPY

TREES = dataclasses.replace(DECODER, tree_nodes=6)
WIDTHS = TREES.widths(3)
FORCED = jnp.ones(len(WIDTHS), jnp.float32)


@pytest.mark.parametrize(("rows", "cache"), [(1, "rows"), (3, "few-pages"), (8, "pages")])
def test_answers_are_those_of_plain_decoding(rows, cache):
    state = jax_sa.init(rows, CAPACITY)
    done = decode(TREES, rows=rows, cache=make_cache(cache, rows), state=state, limits=LIMITS)
    assert_plain(done, LIMITS)


@pytest.mark.parametrize("seed", range(3))
def test_trees_that_are_all_verified(seed):
    prompts, lengths = packed_model.make_prompts(N, P, seed)
    limits = jnp.asarray(np.random.default_rng(seed).integers(1, G + 1, N), jnp.int32)
    done = decode(TREES, prompts=prompts, prompt_lengths=lengths, limits=limits, costs=FORCED)
    assert_plain(done, limits, prompts, lengths)
    assert done.accepted.any()


@pytest.mark.parametrize("seed", [1, 2])  # of which the first failed
def test_trees_near_the_end_of_an_answer(seed):
    """Where the row has pages for fewer nodes than there could be: of one token each."""
    decoder = dataclasses.replace(TREES, tree_nodes=12, budget=64)
    prompts, lengths = packed_model.make_prompts(N, P, seed)
    limits = jnp.asarray(np.random.default_rng(seed).integers(2, 6, N), jnp.int32)
    cache = packed_model.paged_cache(3, 3 * (P + 6), 1, P + 6)
    costs = jnp.ones(len(decoder.widths(3)), jnp.float32)
    arguments = {"prompts": prompts, "prompt_lengths": lengths, "limits": limits, "costs": costs}
    assert_plain(decode(decoder, cache=cache, **arguments), limits, prompts, lengths)


def test_a_cache_that_is_not_moved_shows(monkeypatch):
    monkeypatch.setattr(packed_model.PagedCache, "move", lambda self, start, path: self)

    def model(*arguments):
        return packed_model.model(*arguments)

    done = decode(dataclasses.replace(TREES, model=model), costs=FORCED)
    with pytest.raises(AssertionError):
        assert_plain(done)


def test_logits_of_the_places_that_are_read():
    decoder = dataclasses.replace(TREES, model=packed_model.lazy_model)
    assert_plain(decode(decoder, costs=FORCED))


@pytest.mark.parametrize(("backend", "widths"), [("cpu", (3, 6, 12, 21)), ("gpu", (3, 21))])
def test_widths(monkeypatch, backend, widths):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert TREES.widths(3) == widths
    assert dataclasses.replace(TREES, budget=3).widths(3) == (3,)


def test_the_least_budget():
    assert_plain(decode(dataclasses.replace(TREES, budget=3)))


def test_without_automata_nothing_is_drafted():
    done = decode(TREES, state=None)
    assert_plain(done)
    assert not done.drafted.any()


def test_requests_that_are_admitted_and_released_one_by_one():
    rows = TREES.init(make_cache("pages", 3), rows=3, max_prompt=P, state=jax_sa.init(3, CAPACITY))
    prompts, lengths = packed_model.make_prompts(3, P, seed=2)
    limits = jnp.full(3, G, jnp.int32)
    rows, began = TREES.admit(rows, prompts, lengths, limits)
    assert began.all()
    texts = [[], [], []]
    for number in range(100):
        rows, step = TREES.step(PARAMS, rows, FORCED)
        for row, text in enumerate(texts):
            text.extend(step.tokens[row, : step.length[row]].tolist())
        if number == 8:
            cut = list(texts[1])
            rows = TREES.release(rows, jnp.asarray([False, True, False]))
        if rows.idle.all():
            break
    want = packed_model.all_greedy(prompts, lengths, limits, (STOP,))
    assert texts[0] == want[0] and texts[2] == want[2]
    assert texts[1] == cut == want[1][: len(cut)]


def test_sampled_answers_of_temperature_zero_are_greedy():
    sampling = jax_sa.Sampling(jax.random.key(0), temperature=0.0)
    assert_plain(decode(TREES, sampling=sampling, costs=FORCED))


@pytest.mark.parametrize("nodes", [0, 1.5, 2**20])
def test_errors(nodes):
    with pytest.raises((ValueError, TypeError), match="tree_nodes: expected an int in"):
        dataclasses.replace(DECODER, tree_nodes=nodes)


ROWS, LARGE = 3, 2**16


def writing_model(params, tokens, rows, positions, cache, tree=None):
    """Writes the tokens to the cache, and reads one entry for each: nothing large is in memory."""
    table = cache.block_table
    size = table.block_size
    page = table.pages.at[rows + 1, positions // size].get(mode="fill", fill_value=0)
    written = cache.tokens.at[page, positions % size].set(tokens, mode="drop")
    read = written.at[page, positions // 2 % size].get()
    chosen = params[read % toy_model.VOCABULARY, tokens % toy_model.VOCABULARY]
    cache = dataclasses.replace(cache, tokens=written)
    return jax.nn.one_hot(chosen, toy_model.VOCABULARY), cache


def writing_decoder(nodes):
    return jax_sa.PackedDecoder(writing_model, budget=16, max_draft=nodes, tree_nodes=nodes)


def compile_generate(sharding, decoder, **compiler_options):
    def program(params, prompts, lengths, cache, state):
        return decoder.generate(
            params, prompts, lengths, cache, rows=ROWS, max_new_tokens=16, state=state
        )

    def arguments():
        cache = packed_model.paged_cache(ROWS, ROWS * LARGE // 64, 64, 64)
        state = jax_sa.init(ROWS, 2 * LARGE)
        return PARAMS, jnp.zeros((9, 32), jnp.int32), jnp.zeros(9, jnp.int32), cache, state

    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(arguments),
    )
    lowered = jax.jit(program, donate_argnums=(3, 4)).lower(*shapes)
    return lowered.compile(compiler_options=compiler_options), shapes[3:]


def test_in_place():
    assert_in_place(*compile_generate(None, writing_decoder(4)))


h100 = test_gpu_program.h100  # the fixture


def test_in_place_on_a_gpu(h100):
    assert_in_place(*compile_generate(h100, writing_decoder(4)))


@pytest.mark.skipif(BRANCHES_COPY, reason="jax before 0.11.2 has loops in place of branches")
def test_a_step_of_trees_has_few_kernels(h100, tmp_path):
    """With those of the model: of plain decoding 19 were seen, of trees 37."""
    decoder = writing_decoder(16)
    compile_generate(h100, decoder, xla_dump_to=str(tmp_path), xla_gpu_graph_min_graph_size=1)
    *steps, _ = graphs.compiled_stages(tmp_path)
    expected = packed_blocks.make_blocks(ROWS, decoder.widths(ROWS), decoder.budget)
    assert len(steps) == len(expected) > 2
    plain, *blocks = (len(graphs.launches(step)) for step in steps)
    assert plain <= 20  # without nodes it is plain decoding
    assert max(blocks) <= 38  # with the path of each row, three for moves, and the choice of nodes


def test_inside_shard_map():
    """Shards of trees stop when each is done."""
    mesh = jax.sharding.Mesh(np.asarray(jax.local_devices(backend="cpu")[:2]), ("data",))
    spec = jax.sharding.PartitionSpec("data")

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(spec, spec), out_specs=spec)
    def program(prompts, lengths):
        options = {"rows": 2, "max_new_tokens": G, "state": jax_sa.init(2, CAPACITY)}
        return TREES.generate(
            PARAMS, prompts, lengths, packed_model.row_cache(2, CAPACITY), **options
        ).tokens

    prompts, lengths = packed_model.make_prompts(8, P)
    want = packed_model.all_greedy(prompts, lengths, jnp.full(8, G, jnp.int32), (STOP,))
    tokens = program(prompts, lengths).tolist()
    assert [row[: len(text)] for row, text in zip(tokens, want, strict=True)] == want


def test_with_a_pool_that_answers_go_into():
    pool = jax_sa.init_pool(2048)
    once = decode(TREES, costs=FORCED, pool=pool)
    assert_plain(once)
    again = decode(TREES, costs=FORCED, pool=once.pool)
    assert_plain(again)
    assert int(again.steps.sum()) < 0.7 * int(once.steps.sum())
