"""What XLA makes of a packed decoder: in place, inside a user's jit, and inside shard_map."""

import dataclasses
import functools

import copies
import graphs
import jax
import jax.numpy as jnp
import numpy as np
import packed_model
import pytest
import test_gpu_program
from packed_model import all_greedy, answers
from toy_model import TABLE, VOCABULARY

import jax_sa
from jax_sa import packed_blocks, packed_queue
from jax_sa._branches import BRANCHES_COPY

PARAMS = jnp.asarray(TABLE)
ROWS, MANY, LARGE = 3, 20, 2**16  # of the programs that must be in place: tokens of a row's cache


def writing_model(params, tokens, rows, positions, cache):
    """Writes the tokens to the cache, and reads one entry for each: nothing large is in memory."""
    if isinstance(cache, packed_model.RowCache):
        written = cache.tokens.at[rows, positions].set(tokens, mode="drop")
        read = written.at[rows, positions // 2].get(mode="fill", fill_value=0)
        cache = packed_model.RowCache(written)
    else:
        table = cache.block_table
        size = table.block_size
        page = table.pages.at[rows + 1, positions // size].get(mode="fill", fill_value=0)
        written = cache.tokens.at[page, positions % size].set(tokens, mode="drop")
        read = written.at[page, positions // 2 % size].get()
        cache = dataclasses.replace(cache, tokens=written)
    return jax.nn.one_hot(params[read % VOCABULARY, tokens % VOCABULARY], VOCABULARY), cache


IN_PLACE = jax_sa.PackedDecoder(writing_model, max_draft=2, budget=32)


def buffers(paged, drafts, rows=ROWS):
    """Cache, state and pool; `drafts` says where drafts come from, if they do."""
    cache = packed_model.row_cache(rows, LARGE)
    if paged:
        cache = packed_model.paged_cache(rows, rows * LARGE // 64, 64, 64)
    state = jax_sa.init(rows, 2 * LARGE) if drafts else None
    return cache, state, jax_sa.init_pool(16 * LARGE) if drafts == "pool" else None


def compile_generate(sharding, paged, drafts, rows=ROWS, **compiler_options):
    """All prompts as a user's jitted function holds them, compiled from shapes alone."""

    def program(params, prompts, lengths, cache, state, pool):
        options = {"rows": rows, "max_new_tokens": 16, "state": state, "pool": pool}
        return IN_PLACE.generate(params, prompts, lengths, cache, **options)

    lengths = jnp.zeros(9, jnp.int32)
    return compile_program(
        program,
        lambda: (PARAMS, jnp.zeros((9, 32), jnp.int32), lengths, *buffers(paged, drafts, rows)),
        (3, 4, 5),
        sharding,
        **compiler_options,
    )


def compile_step(sharding, paged, drafts):
    """Admission, then a step."""

    def program(params, rows, prompts, lengths):
        rows, began = IN_PLACE.admit(rows, prompts, lengths, lengths)
        rows, step = IN_PLACE.step(params, IN_PLACE.release(rows, ~began))
        return rows, step

    def arguments():
        cache, state, pool = buffers(paged, drafts)
        rows = IN_PLACE.init(cache, rows=ROWS, max_prompt=32, state=state, pool=pool)
        return PARAMS, rows, jnp.zeros((ROWS, 32), jnp.int32), jnp.zeros(ROWS, jnp.int32)

    compiled, (rows,) = compile_program(program, arguments, (1,), sharding)
    return compiled, (
        rows.cache,
        rows.state,
        rows.pool,
    )  # of the small arrays, some are not even read


def compile_program(program, arguments, donated, sharding, **compiler_options):
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(arguments),
    )
    lowered = jax.jit(program, donate_argnums=donated).lower(*shapes)
    compiled = lowered.compile(compiler_options=compiler_options)
    return compiled, [shapes[i] for i in donated]


def assert_in_place(compiled, donated):
    """No copy as large as a leaf of the cache or of a slot, and no room for one.

    Before 0.11.2, XLA copies what the branches of a switch update, so the cache: never a state.
    """
    smallest = LARGE
    if jax.__version_info__ < (0, 11, 2):
        smallest = 1 + max(leaf.size for leaf in jax.tree.leaves(donated[0]))
    copies.assert_in_place(compiled, donated, smallest=4 * smallest, room=4 * smallest)


compile_generate_through_many = functools.partial(compile_generate, rows=MANY)

PROGRAMS = [
    pytest.param(
        compile_generate, True, "automata", marks=pytest.mark.slow
    ),  # that with a pool, less
    (compile_generate, False, "automata"),
    (compile_generate, True, None),
    (compile_generate, True, "pool"),
    (compile_generate_through_many, True, "pool"),
    pytest.param(compile_step, True, "automata", marks=pytest.mark.slow),
    (compile_step, True, "pool"),
]


@pytest.mark.parametrize(("program", "paged", "drafts"), PROGRAMS)
def test_in_place(program, paged, drafts):
    assert_in_place(*program(None, paged, drafts))


h100 = test_gpu_program.h100  # the fixture


@pytest.mark.parametrize(("program", "paged", "drafts"), PROGRAMS)
def test_in_place_on_a_gpu(h100, program, paged, drafts):
    assert_in_place(*program(h100, paged, drafts))


@pytest.mark.skipif(BRANCHES_COPY, reason="jax before 0.11.2 has loops in place of branches")
def test_a_step_is_one_cuda_graph(h100, tmp_path):
    """The block is chosen outside: a choice within a graph makes its kernels start later."""
    compile_generate(
        h100, True, "automata", xla_dump_to=str(tmp_path), xla_gpu_graph_min_graph_size=1
    )
    assert test_gpu_program.captured_calls(tmp_path, "kConditional") == {False}
    assert all(graphs.is_one_graph(stage) for stage in graphs.compiled_stages(tmp_path))


@pytest.mark.skipif(BRANCHES_COPY, reason="jax before 0.11.2 has loops in place of branches")
@pytest.mark.parametrize("drafts", ["automata", None])
def test_a_step_of_one_row_is_one_cuda_graph(h100, tmp_path, drafts):
    """XLA makes none of fewer than five kernels, unless told to. Of `generate` outside of jit."""

    def arguments():
        cache = packed_model.row_cache(1, LARGE)
        state = jax_sa.init(1, 2 * LARGE) if drafts else None
        limits, prompts = jnp.full(9, 16, jnp.int32), jnp.zeros((9, 32), jnp.int32)
        queue = packed_queue.make_queue(limits, limits, capacity=LARGE, max_prompt=32)
        rows = IN_PLACE._idle_rows(cache, state, None, prompts, jnp.zeros(1, jnp.int32))
        work, queue = packed_queue.begin(rows, queue, 16)
        costs = jnp.ones(len(IN_PLACE.widths(1, drafts=drafts is not None)), jnp.float32)
        return PARAMS, queue, work, costs, jnp.zeros((), jnp.int32)

    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=h100),
        jax.eval_shape(arguments),
    )
    lowered = jax_sa.PackedDecoder._run.lower(IN_PLACE, *shapes)
    lowered.compile(compiler_options={"xla_dump_to": str(tmp_path)})
    assert all(graphs.is_one_graph(stage) for stage in graphs.compiled_stages(tmp_path))


@pytest.mark.skipif(BRANCHES_COPY, reason="jax before 0.11.2 has loops in place of branches")
@pytest.mark.parametrize(("drafts", "most"), [("automata", 14), (None, 11)])
def test_a_step_has_few_kernels(h100, tmp_path, drafts, most):
    """Of plain decoding 13 and 10 were seen, the model's included. Each takes a launch's time."""
    compile_generate(h100, True, drafts, xla_dump_to=str(tmp_path), xla_gpu_graph_min_graph_size=1)
    *kernels, _ = (len(graphs.launches(stage)) for stage in graphs.compiled_stages(tmp_path))
    widths = IN_PLACE.widths(ROWS, drafts=drafts is not None)
    assert len(kernels) == len(packed_blocks.make_blocks(ROWS, widths, IN_PLACE.budget)) > 1
    assert 3 <= kernels[0] <= most
    assert max(kernels) <= most + 10


def test_the_graphs_of_branches():
    thunks = """000: kCommandBuffer
    001: kCopy
002: kWhile
condition:
    003: kCustomKernel
  body:
    000: kCommandBuffer
        008: kCustomKernel
    009: kConditional
      branch_0:
        000: kCommandBuffer
            005: kCustomKernel
            010: kCopy
      branch_1:
        000: kCommandBuffer
            025: kCustomKernel
            026: kConditional
              branch_0:
                027: kCopy
      branch_2:
        000: kCommandBuffer
            035: kCustomKernel
        036: kCopy
    037: kCopy
022: kCopy
"""
    seen = graphs.branches(thunks)
    assert [len(graphs.launches(branch)) for branch in seen] == [2, 2, 2]
    assert [graphs.is_one_graph(branch) for branch in seen] == [True, False, False]


N, P, G, CAPACITY = 7, 24, 12, 48
PROMPTS, LENGTHS = packed_model.make_prompts(N, P)
DECODER = jax_sa.PackedDecoder(packed_model.model, max_draft=4, budget=16)
ALL = jnp.full(N, G, jnp.int32)


def test_under_jit_requests_that_cannot_be_answered_are_told_in_the_result():
    lengths = LENGTHS.at[1].set(0).at[2].set(P + 1).at[3].set(P)
    limits = ALL.at[5].set(0).at[4].set(99).at[0].set(-3)

    @jax.jit
    def run(prompts, lengths, limits):
        cache = packed_model.paged_cache(2, 9, 4, 8)
        state = jax_sa.init(2, CAPACITY)
        return DECODER.generate(
            PARAMS, prompts, lengths, cache, rows=2, max_new_tokens=G, limits=limits, state=state
        )

    done = run(PROMPTS, lengths, limits)
    fits = (lengths >= 1) & (lengths <= P) & (lengths + jnp.clip(limits, 0, G) <= 8 * 4)
    assert done.finished.tolist() == fits.tolist() and not fits[1:4].any() and fits.sum() >= 3
    limits = jnp.where(fits, jnp.clip(limits, 0, G), 0)
    assert answers(done) == all_greedy(PROMPTS, lengths, limits)
    assert int(done.cache.block_table.num_unclaimed) == 9


def test_a_decoder_that_is_equal_shares_compiled_code():
    traced = []

    def counting(params, tokens, rows, positions, cache):
        traced.append(tokens.shape)
        return writing_model(params, tokens, rows, positions, cache)

    seen = []
    for stop_tokens in [(3,), (np.int64(3),)]:
        decoder = jax_sa.PackedDecoder(counting, stop_tokens=stop_tokens, budget=np.int32(4))
        decoder.generate(
            PARAMS, PROMPTS, LENGTHS, packed_model.row_cache(4, 64), rows=4, max_new_tokens=2
        )
        seen.append(len(traced))
    assert 0 < seen[0] == seen[1]


@pytest.mark.parametrize("paged", [False, True])
def test_inside_shard_map(paged):
    """Each shard has prompts, rows, cache and automata of its own, and stops when it is done."""
    mesh = jax.sharding.Mesh(np.asarray(jax.local_devices(backend="cpu")[:2]), ("data",))
    spec = jax.sharding.PartitionSpec("data")

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(spec, spec), out_specs=spec)
    def program(prompts, lengths):
        cache = packed_model.row_cache(2, CAPACITY)
        if paged:
            cache = packed_model.paged_cache(2, 20, 4, 12)
        state = jax_sa.init(2, CAPACITY)
        done = DECODER.generate(
            PARAMS, prompts, lengths, cache, rows=2, max_new_tokens=G, state=state
        )
        return done.tokens, done.finished, done.calls[None]

    prompts, lengths = packed_model.make_prompts(8, P)
    tokens, finished, calls = program(prompts, lengths)
    assert finished.all() and calls.shape == (2,)
    assert tokens.tolist() == all_greedy(prompts, lengths, jnp.full(8, G, jnp.int32))
