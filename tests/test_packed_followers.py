"""Packed decoders that draft from followers: the answers of plain decoding, in fewer steps."""

import dataclasses
import functools
import itertools

import copies
import jax
import jax.numpy as jnp
import numpy as np
import packed_model
import pytest
import test_gpu_program
import tree_reference
from test_packed_decoder import CAPACITY, LIMITS, PARAMS, G, N, P, assert_plain, decode, make_cache
from test_tree_packed_decoder import ROWS, TREES, writing_model
from toy_model import VOCABULARY

import jax_sa
from jax_sa._branches import BRANCHES_COPY

# Few blocks, each of which takes time to compile.
SMALL = dataclasses.replace(TREES, budget=9)
FORCED = jnp.ones(len(SMALL.widths(3)), jnp.float32)


def unknown(num_groups=1):
    return jax_sa.init_followers(VOCABULARY, num_groups=num_groups)


@pytest.mark.parametrize(
    ("rows", "cache", "model"),
    [
        (1, "rows", packed_model.model),
        (3, "few-pages", packed_model.lazy_model),
        pytest.param(8, "pages", packed_model.model, marks=pytest.mark.slow),
    ],
)
def test_answers_are_those_of_plain_decoding(rows, cache, model):
    decoder = dataclasses.replace(TREES, model=model, tree_nodes=12)
    arguments = {"rows": rows, "limits": LIMITS}

    def run(**options):
        buffers = {"cache": make_cache(cache, rows), "state": jax_sa.init(rows, CAPACITY)}
        options = {"groups": jnp.zeros(N, jnp.int32)} | options
        done = decode(decoder, **arguments, **buffers, **options)
        assert_plain(done, LIMITS)
        return done

    costs = jnp.ones(len(decoder.widths(rows)), jnp.float32)
    no_group = jnp.full(N, -1, jnp.int32)
    without = run(costs=costs, followers=unknown(), groups=no_group)
    first = run(costs=costs, followers=unknown())
    assert int(first.steps.sum()) < int(without.steps.sum())
    again = run(costs=costs, followers=first.followers)
    assert int(again.steps.sum()) <= int(first.steps.sum())
    run(followers=again.followers)  # by estimated costs


def test_what_is_known_then():
    """Of each token that was read last in plain decoding, what the model said there."""
    one = {"prompts": jnp.asarray([[2, 5, 1]], jnp.int32), "prompt_lengths": jnp.asarray([3])}
    limits = jnp.asarray([G], jnp.int32)
    # Nothing of the prompt.
    decoder = dataclasses.replace(TREES, model=packed_model.lazy_model, budget=4)
    assert decoder.widths(3) == (3, 4)
    costs = jnp.asarray([1.0, jnp.inf], jnp.float32)
    done = decode(decoder, **one, limits=limits, costs=costs, followers=unknown())
    (answer,) = packed_model.answers(done)
    # A block's first token stands in for places that are not read; the last time counts.
    chosen = {2: packed_model.greedy([2], 1)[0]} | dict(itertools.pairwise([1, *answer]))
    known = np.asarray(done.followers.tokens)[0]
    for token in range(VOCABULARY):
        wanted = [-1] * 8
        if token in chosen:
            logits = np.eye(VOCABULARY)[chosen[token]]
            wanted = tree_reference.followers_of(logits.tolist())
        assert known[token].tolist() == wanted


def test_groups_keep_to_themselves():
    groups = jnp.arange(N, dtype=jnp.int32) % 3 - 1  # none, the first, the second
    followers = jax_sa.Followers(unknown(3).tokens.at[2].set(0))
    done = decode(SMALL, limits=LIMITS, costs=FORCED, followers=followers, groups=groups)
    assert_plain(done, LIMITS)
    assert (done.followers.tokens[:2] >= 0).any(axis=(1, 2)).all()
    assert not done.followers.tokens[2].any()
    only = decode(SMALL, limits=LIMITS, followers=unknown(3), groups=jnp.full(N, -1, jnp.int32))
    assert (only.followers.tokens == -1).all()


@pytest.mark.slow
def test_with_a_pool():
    buffers = {"pool": jax_sa.init_pool(2048, num_groups=2), "followers": unknown(2)}
    groups = jnp.arange(N, dtype=jnp.int32) % 2
    once = decode(SMALL, costs=FORCED, groups=groups, **buffers)
    assert_plain(once)
    buffers = {"pool": once.pool, "followers": once.followers}
    assert_plain(decode(SMALL, costs=FORCED, groups=groups, **buffers))


@pytest.mark.slow
def test_sampled_answers_of_temperature_zero_are_greedy():
    sampling = jax_sa.Sampling(jax.random.key(0), temperature=0.0)
    assert_plain(decode(SMALL, sampling=sampling, costs=FORCED, followers=unknown()))


def test_step_by_step():
    """Requests of two groups, admitted one after the other."""
    state, cache = jax_sa.init(3, CAPACITY), make_cache("pages", 3)
    rows = SMALL.init(cache, rows=3, max_prompt=P, state=state, followers=unknown(2))
    prompts, lengths = packed_model.make_prompts(3, P, seed=2)
    limits = jnp.full(3, G, jnp.int32)
    rows, _ = SMALL.admit(rows, prompts, lengths, limits, groups=jnp.asarray([1, 1, -1], jnp.int32))
    texts = [[], [], []]
    while not rows.idle.all():
        rows, step = SMALL.step(PARAMS, rows, FORCED)
        for row, text in enumerate(texts):
            text.extend(step.tokens[row, : step.length[row]].tolist())
    assert texts == packed_model.all_greedy(prompts, lengths, limits, SMALL.stop_tokens)
    known = np.asarray(rows.followers.tokens)
    assert (known[0] == -1).all() and (known[1] >= 0).any()


def test_calibration_leaves_them_as_they_are():
    followers = jax_sa.Followers(unknown().tokens.at[0, 3, 0].set(1))
    prompts, lengths = packed_model.make_prompts(N, P)
    measured = SMALL.calibrate(
        *(PARAMS, prompts, lengths, make_cache("pages", 3)),
        rows=3,
        max_new_tokens=G,
        state=jax_sa.init(3, CAPACITY),
        followers=followers,
    )
    assert measured.costs.shape == FORCED.shape
    assert int(followers.tokens[0, 3, 0]) == 1 and int((followers.tokens >= 0).sum()) == 1


def test_errors():
    with pytest.raises(ValueError, match="followers: expected a state and tree_nodes"):
        decode(dataclasses.replace(TREES, tree_nodes=None), followers=unknown())
    with pytest.raises(ValueError, match="followers: expected a state and tree_nodes"):
        decode(TREES, state=None, followers=unknown())
    with pytest.raises(ValueError, match=r"logits: expected float32\[\d+, 5\]"):
        decode(TREES, followers=jax_sa.init_followers(5))
    with pytest.raises(TypeError, match=r"followers: expected a jax_sa\.Followers"):
        decode(TREES, followers=unknown().tokens)


LARGE_VOCABULARY, LARGE = 2**16, 2**16


def large_model(*arguments):
    chosen, cache = writing_model(*arguments)
    return jnp.pad(chosen, ((0, 0), (0, LARGE_VOCABULARY - VOCABULARY))), cache


def compile_generate(sharding, **compiler_options):
    decoder = jax_sa.PackedDecoder(large_model, budget=8, max_draft=4, tree_nodes=4)

    def program(params, prompts, lengths, cache, state, followers):
        options = {"rows": ROWS, "max_new_tokens": 16, "state": state, "followers": followers}
        done = decoder.generate(params, prompts, lengths, cache, **options)
        return done.tokens, done.cache, done.state, done.followers

    def arguments():
        cache = packed_model.paged_cache(ROWS, ROWS * LARGE // 64, 64, 64)
        state, followers = jax_sa.init(ROWS, 2 * LARGE), jax_sa.init_followers(LARGE_VOCABULARY)
        prompts, lengths = jnp.zeros((9, 32), jnp.int32), jnp.zeros(9, jnp.int32)
        return PARAMS, prompts, lengths, cache, state, followers

    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(arguments),
    )
    lowered = jax.jit(program, donate_argnums=(3, 4, 5)).lower(*shapes)
    return lowered.compile(compiler_options=compiler_options), shapes[3:]


def assert_in_place(compiled, donated):
    """Only the logits of the block are as large as the followers."""
    size = donated[-1].tokens.size * 4
    if BRANCHES_COPY:
        smallest = 1 + max(leaf.size * 4 for leaf in jax.tree.leaves(donated))
        return copies.assert_in_place(compiled, donated, smallest=smallest, room=6 * smallest)
    copies.assert_in_place(compiled, donated, smallest=size, room=4 * size)


def test_in_place():
    assert_in_place(*compile_generate(None))


h100 = test_gpu_program.h100  # the fixture


def test_in_place_and_captured_on_a_gpu(h100, tmp_path):
    options = {"xla_dump_to": str(tmp_path), "xla_gpu_graph_min_graph_size": 1}
    compiled, donated = compile_generate(h100, **options)
    assert_in_place(compiled, donated)
    assert "jax_sa_note_followers" in compiled.as_text()
    if not BRANCHES_COPY:
        test_gpu_program.assert_captured(tmp_path)


def test_inside_shard_map():
    """Each shard has followers of its own."""
    mesh = jax.sharding.Mesh(np.asarray(jax.local_devices(backend="cpu")[:2]), ("data",))
    spec = jax.sharding.PartitionSpec("data")
    decoder = dataclasses.replace(TREES, budget=6)

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec)
    def program(prompts, lengths, tokens):
        options = {"rows": 2, "max_new_tokens": G, "state": jax_sa.init(2, CAPACITY)}
        cache, followers = packed_model.row_cache(2, CAPACITY), jax_sa.Followers(tokens)
        done = decoder.generate(PARAMS, prompts, lengths, cache, followers=followers, **options)
        return done.tokens, done.followers.tokens

    prompts, lengths = packed_model.make_prompts(8, P)
    want = packed_model.all_greedy(prompts, lengths, jnp.full(8, G, jnp.int32), TREES.stop_tokens)
    tokens, known = program(prompts, lengths, unknown(2).tokens)
    found = [row[: len(text)] for row, text in zip(tokens.tolist(), want, strict=True)]
    assert found == want
    assert (known >= 0).any(axis=(1, 2)).all()
