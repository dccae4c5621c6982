"""Generations with trees of drafts are those of plain decoding, in fewer steps, in place."""

import dataclasses

import copies
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_gpu_program
import toy_model
from test_decoder import MOST, assert_greedy, full_state, random_prompts
from test_verify import chance, distribution

import jax_sa

PARAMS = jnp.asarray(toy_model.TABLE)


def make_decoder(nodes, model=toy_model.tree_model, **options):
    """Of few widths, each of which takes time to compile."""
    widths = tuple({min(nodes, 2), nodes})
    return jax_sa.Decoder(model, tree_nodes=nodes, draft_widths=widths, **options)


def generate(
    prompts,
    lengths,
    limits,
    *,
    most=MOST,
    nodes=8,
    room=256,
    cache_size=256,
    model=toy_model.tree_model,
    **options,
):
    """`limits`: new tokens, of all rows or of each; `most`: those there are places for."""
    rows = len(lengths)
    decoder_options = {
        name: options.pop(name)
        for name in ("stop_tokens", "drafter", "follow_neural")
        if name in options
    }
    return make_decoder(nodes, model, **decoder_options).generate(
        PARAMS,
        prompts,
        lengths,
        toy_model.init_cache(rows, cache_size),
        max_new_tokens=most,
        limits=jnp.broadcast_to(jnp.asarray(limits, jnp.int32), rows),
        state=full_state(rows, 256, room),
        **options,
    )


def free(nodes):
    """Costs that make every node worth verifying."""
    return jnp.ones(len(make_decoder(nodes).widths()))


@pytest.mark.parametrize(
    ("nodes", "stop_tokens"),
    [
        *[(1, (3, 8)), (2, ()), (8, (3, 8)), (13, ())],
        *[pytest.param(*case, marks=pytest.mark.slow) for case in ((1, ()), (2, (3, 8)))],
        *[pytest.param(*case, marks=pytest.mark.slow) for case in ((8, ()), (13, (3, 8)))],
    ],
)
def test_the_output_is_that_of_greedy_decoding(nodes, stop_tokens):
    for rows in ([1, 2, 17, 9], [40, 5, 33, 20]):
        prompts, lengths = random_prompts(nodes, rows)
        generation = generate(
            prompts, lengths, 90, nodes=nodes, stop_tokens=stop_tokens, costs=free(nodes)
        )
        assert_greedy(generation, prompts, lengths, [90] * 4, stop_tokens)


def test_with_estimated_costs_and_limits():
    prompts, lengths = random_prompts(5, [9, 30, 12, 4])
    generation = generate(prompts, lengths, [0, 1, 33, MOST + 1])
    assert_greedy(generation, prompts, lengths, [0, 1, 33, MOST])
    assert generation.steps[0] == 0 and generation.steps[1] == 1


def test_trees_save_steps_that_chains_do_not():
    prompts, lengths = random_prompts(1, [40, 35, 30, 20])
    tree = generate(prompts, lengths, 200, nodes=8, costs=free(8))
    chain = jax_sa.generate(
        toy_model.model,
        PARAMS,
        prompts,
        lengths,
        toy_model.init_cache(4, 256),
        max_new_tokens=200,
        state=jax_sa.init(4, 256),
        draft_widths=(2, 8),
        max_draft=8,
        costs=jnp.ones(3),
    )
    assert int(tree.steps.sum()) < int(chain.steps.sum())


def test_a_cache_that_is_not_moved_shows(monkeypatch):
    monkeypatch.setattr(toy_model.Cache, "move", lambda self, start, path: self)
    prompts, lengths = random_prompts(1, [40, 35, 30, 20])

    def model(*arguments):
        return toy_model.tree_model(*arguments)

    generation = generate(prompts, lengths, 100, costs=free(8), model=model)
    with pytest.raises(AssertionError):
        assert_greedy(generation, prompts, lengths, [100] * 4)


def test_where_nothing_is_worth_it_nothing_is_verified():
    prompts, lengths = random_prompts(1, [40, 35, 30, 20])
    costs = free(8).at[1:].set(1e6)
    generation = generate(prompts, lengths, 50, costs=costs)
    assert generation.drafted.tolist() == [0] * 4 and generation.steps.tolist() == [50] * 4
    assert_greedy(generation, prompts, lengths, [50] * 4)


@pytest.mark.parametrize("nodes", [8, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 13))])
def test_a_cache_of_just_prompt_and_new_tokens_will_do(nodes):
    """Neither the nodes of a row near its end nor those beside a finished one need more."""
    prompts, lengths = random_prompts(4, [20, 20, 20, 7])
    limits = jnp.asarray([30, 9, 30, 30], jnp.int32)
    drafted = generate(
        prompts, lengths, limits, most=30, nodes=nodes, cache_size=50, costs=free(nodes)
    )
    assert_greedy(drafted, prompts, lengths, limits.tolist())
    assert drafted.accepted.any()


def test_full_slots_go_on_without_drafts():
    prompts, lengths = random_prompts(2, [40, 3, 19])
    generation = generate(prompts, lengths, 60, room=45, costs=free(8))
    assert_greedy(generation, prompts, lengths, [60] * 3)


@pytest.fixture(scope="module")
def steps_alone():
    """The steps of four rows whose trees are from their own texts alone."""
    prompts, lengths = random_prompts(1, [40, 35, 30, 20])
    return int(generate(prompts, lengths, 100, costs=free(8)).steps.sum())


@pytest.mark.parametrize(
    ("follow_neural", "with_pool"),
    [
        (False, False),
        (True, True),
        pytest.param(False, True, marks=pytest.mark.slow),
        pytest.param(True, False, marks=pytest.mark.slow),
    ],
)
def test_with_a_neural_drafter(steps_alone, follow_neural, with_pool):
    prompts, lengths = random_prompts(1, [40, 35, 30, 20])
    pool = None
    if with_pool:
        pool = jax_sa.insert(jax_sa.init_pool(1024), prompts[:2], lengths[:2])
    both = generate(
        *(prompts, lengths, 100),
        drafter=toy_model.drafter(2),
        follow_neural=follow_neural,
        costs=jnp.ones(2 + free(8).size),
        pool=pool,
    )
    assert_greedy(both, prompts, lengths, [100] * 4)
    assert int(both.steps.sum()) < 0.9 * steps_alone


def test_without_automata_drafts_are_chains():
    prompts, lengths = random_prompts(2, [40, 3, 19])
    decoder = jax_sa.Decoder(toy_model.model, tree_nodes=8, drafter=toy_model.drafter(2))
    cache = toy_model.init_cache(3, 256)
    generation = decoder.generate(PARAMS, prompts, lengths, cache, max_new_tokens=40)
    assert_greedy(generation, prompts, lengths, [40] * 3)


def test_steps_stream_what_generate_returns():
    prompts, lengths = random_prompts(4, [7, 20, 1])
    decoder = jax_sa.Decoder(toy_model.tree_model, tree_nodes=6)
    generation = decoder.init(
        PARAMS,
        prompts,
        lengths,
        toy_model.init_cache(3, 128),
        max_new_tokens=30,
        state=jax_sa.init(3, 128),
    )
    texts = [[], [], []]
    while not generation.finished.all():
        generation, emitted = decoder.step(PARAMS, generation, jnp.ones(len(decoder.widths())))
        for row, text in enumerate(texts):
            text.extend(emitted.tokens[row, : emitted.length[row]].tolist())
    assert texts == [row[:30] for row in generation.tokens.tolist()]
    assert_greedy(generation, prompts, lengths, [30] * 3)


@pytest.mark.parametrize("nodes", [0, 1.5, 2**20])
def test_errors(nodes):
    with pytest.raises((ValueError, TypeError), match="tree_nodes: expected an int in"):
        jax_sa.Decoder(toy_model.tree_model, tree_nodes=nodes)


# Sampled: a model whose choice is a matter of chance, by the last two tokens of the path.
VOCABULARY = 4
CHANCES = np.random.default_rng(3).dirichlet(np.full(VOCABULARY, 0.7), (VOCABULARY, VOCABULARY))


def random_model(params, tokens, cache, tree=None):
    text = toy_model.append(cache.tokens, cache.length, tokens)
    if tree is None:
        position = cache.length[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        before = jnp.take_along_axis(text, jnp.maximum(position - 1, 0), axis=1)
    else:
        before, _, _ = toy_model.read_paths(text, tree)
    cache = dataclasses.replace(cache, tokens=text)
    return params[before % VOCABULARY, tokens % VOCABULARY], cache


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 3, "temperature": 0.8},
        pytest.param({"top_p": 0.8}, marks=pytest.mark.slow),  # in one step: test_verify_tree.py
    ],
    ids=str,
)
def test_sampled_texts_have_the_models_distribution(options):
    """Each token, given the two before it: as often as the model says."""
    rows, count = 256, 60
    prompts = jnp.asarray(np.random.default_rng(0).integers(0, VOCABULARY, (rows, 12)), jnp.int32)
    decoder = jax_sa.Decoder(random_model, tree_nodes=8)
    generation = decoder.generate(
        jnp.log(jnp.asarray(CHANCES, jnp.float32)),
        prompts,
        jnp.full(rows, 12, jnp.int32),
        toy_model.init_cache(rows, 128),
        max_new_tokens=count,
        state=jax_sa.init(rows, 128),
        sampling=jax_sa.Sampling(jax.random.key(1), **options),
        costs=jnp.ones(len(decoder.widths())),
    )
    assert generation.accepted.sum() > rows * 10
    text = np.concatenate([np.asarray(prompts), np.asarray(generation.tokens)], axis=1)
    for first in range(VOCABULARY):
        for second in range(VOCABULARY):
            here = (text[:, 10:-2] == first) & (text[:, 11:-1] == second)
            following = text[:, 12:][here]
            if following.size < 100:
                continue
            law = distribution(np.log(CHANCES[first, second]), **options)
            if np.count_nonzero(law) > 1:
                assert chance(following, law) > 1e-5
            else:
                assert set(following) == set(np.flatnonzero(law))


ROWS, LARGE = 4, 2**16
SMALLEST_COPY = LARGE if jax.__version_info__ >= (0, 11, 2) else ROWS * LARGE + 1


def writing_model(params, tokens, cache, tree=None):
    """Writes the tokens to the cache, and reads one entry for each: nothing large is in memory."""
    text = toy_model.append(cache.tokens, cache.length, tokens)
    row = jnp.arange(tokens.shape[0], dtype=jnp.int32)[:, None]
    read = text.at[row, (cache.length[:, None] + tokens) // 2].get(mode="clip")
    chosen = params[read % toy_model.VOCABULARY, tokens % toy_model.VOCABULARY]
    cache = dataclasses.replace(cache, tokens=text)
    return jax.nn.one_hot(chosen, toy_model.VOCABULARY), cache


def compile_generate(sharding):
    decoder = jax_sa.Decoder(writing_model, tree_nodes=4)

    def program(prompts, lengths, cache, state):
        return decoder.generate(PARAMS, prompts, lengths, cache, max_new_tokens=16, state=state)

    shapes = jax.eval_shape(
        lambda: (
            jnp.zeros((ROWS, 8), jnp.int32),
            jnp.zeros(ROWS, jnp.int32),
            toy_model.init_cache(ROWS, LARGE),
            jax_sa.init(ROWS, 2 * LARGE),
        )
    )
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes
    )
    return jax.jit(program, donate_argnums=(2, 3)).lower(*shapes).compile(), shapes[2:]


def assert_in_place(compiled, donated):
    copies.assert_in_place(compiled, donated, smallest=4 * SMALLEST_COPY, room=4 * SMALLEST_COPY)


def test_in_place():
    assert_in_place(*compile_generate(None))


h100 = test_gpu_program.h100  # the fixture


def test_in_place_on_a_gpu(h100):
    assert_in_place(*compile_generate(h100))


def test_with_a_pool_of_the_same_texts():
    prompts, lengths = random_prompts(6, [9, 30, 12, 20])
    once = generate(prompts, lengths, 60, costs=free(8))
    pool = jax_sa.insert_slots(jax_sa.init_pool(1024), once.state, jnp.arange(4, dtype=jnp.int32))
    again = generate(prompts, lengths, 60, costs=free(8), pool=pool)
    assert_greedy(again, prompts, lengths, [60] * 4)
    assert (2 * again.steps < once.steps).all()
    groups = jnp.asarray([0, 0, -1, 0], jnp.int32)
    apart = generate(prompts, lengths, 60, costs=free(8), pool=pool, groups=groups)
    assert_greedy(apart, prompts, lengths, [60] * 4)
    assert apart.steps[2] > 2 * apart.steps[0] and apart.steps[2] > 2 * again.steps[2]
