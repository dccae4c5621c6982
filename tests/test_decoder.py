"""Generations are those of plain greedy decoding, in fewer steps, in one program, in place."""

import copies
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_gpu_program
import toy_model
from jax_sa.generate import _merge

import jax_sa

PARAMS = jnp.asarray(toy_model.TABLE)
DRAFTER = toy_model.drafter(2)
MAX_DRAFT = 8
PROMPTS = jnp.ones((2, 3), jnp.int32)
ROWS, LARGE = 4, 2**16  # of the programs that must be in place: tokens of a row's cache
# Before 0.11.2, XLA copies what the branches of a switch update, so the cache: never a state.
SMALLEST_COPY = LARGE if jax.__version_info__ >= (0, 11, 2) else ROWS * LARGE + 1
MODES = {
    "none": {},
    "automaton": {"automaton": True},
    "neural": {"drafter": DRAFTER},
    "hybrid": {"automaton": True, "drafter": DRAFTER},
}


def random_prompts(seed, lengths, width=None):
    random = np.random.default_rng(seed)
    prompts = random.integers(0, toy_model.VOCABULARY, (len(lengths), width or max(lengths)))
    return jnp.asarray(prompts, jnp.int32), jnp.asarray(lengths, jnp.int32)


def generate(prompts, lengths, count, *, automaton=False, capacity=256, cache_size=256, **options):
    rows = len(lengths)
    state = jax_sa.init(rows, capacity) if automaton else None
    return jax_sa.generate(
        toy_model.model,
        PARAMS,
        prompts,
        lengths,
        toy_model.init_cache(rows, cache_size),
        max_new_tokens=count,
        state=state,
        max_draft=MAX_DRAFT,
        **options,
    )


def assert_greedy(generation, prompts, lengths, limits, stop_tokens=()):
    generation = jax.device_get(generation)
    width = generation.tokens.shape[1]
    for row, (length, limit) in enumerate(zip(lengths.tolist(), limits, strict=True)):
        want = toy_model.greedy(prompts[row, :length].tolist(), limit, stop_tokens)
        assert generation.tokens[row].tolist() == want + [0] * (width - len(want))
        assert generation.lengths[row] == len(want)
    assert generation.finished.all()
    np.testing.assert_array_equal(generation.lengths, generation.steps + generation.accepted)
    assert (generation.accepted <= generation.drafted).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stop_tokens", [(), (3, 8), (0,)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_the_output_is_that_of_greedy_decoding(mode, stop_tokens, seed):
    prompts, lengths = random_prompts(seed, [1, 2, 17, 40, 5, 33])
    generation = generate(prompts, lengths, 90, stop_tokens=stop_tokens, **MODES[mode])
    assert_greedy(generation, prompts, lengths, [90] * 6, stop_tokens)


@pytest.mark.parametrize("mode", MODES)
def test_limits(mode):
    prompts, lengths = random_prompts(5, [9, 30, 12, 4, 8, 2])
    limits = [0, 1, 2, 33, 60, 99]
    generation = generate(
        prompts, lengths, 60, limits=jnp.asarray(limits, jnp.int32), **MODES[mode]
    )
    assert_greedy(generation, prompts, lengths, [min(limit, 60) for limit in limits])
    assert generation.steps[0] == 0 and generation.steps[1] == 1


def test_drafts_save_steps():
    prompts, lengths = random_prompts(1, [40, 35, 30])
    steps = {
        mode: int(generate(prompts, lengths, 200, **options).steps.sum())
        for mode, options in MODES.items()
    }
    assert steps["none"] == 3 * 200
    assert steps["automaton"] < 0.9 * steps["none"]
    # The drafter is wrong only where a surprise comes: told anything wrong, it would be lost.
    assert steps["neural"] < 0.5 * steps["none"]
    assert steps["hybrid"] < steps["automaton"]


def test_stop_tokens_cut_inside_an_accepted_block():
    """A text that repeats is accepted in long blocks, the stop token in their middle."""
    table = jnp.asarray((np.arange(1, 12)[None] % 6).repeat(11, 0).astype(np.int32))

    def periodic(params, tokens, cache):
        return jax.nn.one_hot(params[0][tokens], 11), cache

    prompts = jnp.asarray([[0, 1, 2, 3, 4, 5, 0, 1]], jnp.int32)
    decoder = jax_sa.Decoder(periodic, max_draft=8, stop_tokens=(4,))
    cache, state = toy_model.init_cache(1, 8), jax_sa.init(1, 64)
    generation = decoder.init(
        table, prompts, jnp.full(1, 8, jnp.int32), cache, max_new_tokens=20, state=state
    )
    assert generation.draft.length.tolist() == [8]
    generation, emitted = decoder.step(table, generation)
    assert emitted.tokens.tolist() == [[2, 3, 4, *[jax_sa.DRAFT_FILL] * 6]]
    assert emitted.length.tolist() == generation.lengths.tolist() == [3]
    assert generation.finished.tolist() == [True]
    assert generation.draft.length.tolist() == [0]
    assert generation.cache.length.tolist() == [10]  # all but the last token
    assert generation.state.length.tolist() == [11]


@pytest.mark.parametrize("mode", ["automaton", "hybrid"])
@pytest.mark.parametrize("capacity", [1, 20, 45])
def test_full_slots_go_on_without_drafts(mode, capacity):
    prompts, lengths = random_prompts(2, [40, 3, 19])
    generation = generate(prompts, lengths, 60, capacity=capacity, **MODES[mode])
    assert_greedy(generation, prompts, lengths, [60] * 3)
    assert np.all(np.asarray(generation.state.status) == jax_sa.Status.FULL)


@pytest.mark.parametrize("mode", MODES)
def test_rows_without_a_prompt_are_idle(mode):
    prompts, lengths = random_prompts(3, [4, 4, 4, 4])
    given = jnp.asarray([0, 4, -1, 5], jnp.int32)
    generation = generate(prompts, given, 12, **MODES[mode])
    assert_greedy(generation, prompts, lengths, [0, 12, 0, 0])
    assert ((generation.steps > 0) == (generation.lengths > 0)).all()
    if generation.state is not None:
        assert generation.state.length.tolist() == [0, 16, 0, 0]


def test_a_cache_without_room_for_drafts_at_the_end():
    """No token that counts is beyond prompt and limit, so a cache of just that size will do."""
    prompts, lengths = random_prompts(4, [20, 20])
    generation = generate(prompts, lengths, 30, cache_size=50, **MODES["hybrid"])
    assert_greedy(generation, prompts, lengths, [30, 30])


def test_steps_are_the_loop():
    prompts, lengths = random_prompts(6, [12, 30, 7])
    expected = generate(prompts, lengths, 50, stop_tokens=(9,), **MODES["hybrid"])
    decoder = jax_sa.Decoder(
        toy_model.model, drafter=DRAFTER, max_draft=MAX_DRAFT, stop_tokens=(9,)
    )
    generation = decoder.init(
        PARAMS,
        prompts,
        lengths,
        toy_model.init_cache(3, 256),
        max_new_tokens=50,
        state=jax_sa.init(3, 256),
    )
    streams = [[], [], []]
    while not generation.finished.all():
        generation, emitted = decoder.step(PARAMS, generation)
        for row, stream in enumerate(streams):
            assert 0 <= emitted.length[row] <= 1 + MAX_DRAFT
            stream += emitted.tokens[row, : emitted.length[row]].tolist()
    for row, stream in enumerate(streams):
        assert stream == generation.tokens[row, : generation.lengths[row]].tolist()
    jax.tree.map(np.testing.assert_array_equal, generation, expected)


def test_a_second_turn_goes_on_from_cache_and_state():
    """The last token of a turn has not been through the model: it opens the next prompt."""
    prompts, lengths = random_prompts(7, [10, 6])
    first = generate(prompts, lengths, 20, automaton=True)
    said = [toy_model.greedy(prompts[row, :n].tolist(), 20) for row, n in enumerate([10, 6])]
    # The automaton has heard that token; here it hears it again, which costs drafts, not truth.
    question = jnp.asarray([[said[0][-1], 1, 2], [said[1][-1], 3, 4]], jnp.int32)
    second = jax_sa.generate(
        toy_model.model,
        PARAMS,
        question,
        jnp.full(2, 3, jnp.int32),
        first.cache,
        max_new_tokens=20,
        state=first.state,
    )
    for row, n in enumerate([10, 6]):
        text = [*prompts[row, :n].tolist(), *said[row], *question[row, 1:].tolist()]
        assert second.tokens[row].tolist() == toy_model.greedy(text, 20)


def test_a_step_without_drafts_reads_one_token():
    widths = []

    def recording(params, tokens, cache):
        jax.debug.callback(lambda: widths.append(tokens.shape[1]), ordered=True)
        return jax.nn.one_hot(tokens + 1, 99), cache  # counts up: nothing repeats

    generation = jax_sa.generate(
        recording,
        (),
        jnp.zeros((1, 1), jnp.int32),
        jnp.ones(1, jnp.int32),
        toy_model.init_cache(1, 1),
        max_new_tokens=20,
        state=jax_sa.init(1, 64),
    )
    jax.effects_barrier()
    assert generation.tokens.tolist() == [list(range(1, 21))]
    assert widths == [1] * 21  # the prompt, too


def test_the_block_is_as_long_as_the_longest_draft():
    decoder = jax_sa.Decoder(toy_model.model)
    assert decoder._draft_widths(0) == [0]
    assert decoder._draft_widths(1) == [0, 1]
    assert decoder._draft_widths(6) == [0, 2, 4, 6]
    assert decoder._draft_widths(16) == [0, 2, 4, 8, 16]
    decoder = jax_sa.Decoder(toy_model.model, drafter=DRAFTER)
    assert decoder._draft_widths(2) == [2]
    assert decoder._draft_widths(16) == [2, 4, 8, 16]


def test_drafts_that_agree_need_no_long_match():
    automaton = jax_sa.Draft(
        tokens=jnp.array([[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 0, 0], [0, 0, 0]], jnp.int32),
        length=jnp.array([3, 3, 3, 1, 0], jnp.int32),
        match_length=jnp.array([1, 1, 4, 1, 0], jnp.int32),
        match_end=jnp.array([7, 7, 7, 7, 0], jnp.int32),
    )
    neural = jnp.array([[1, 2], [1, 9], [8, 9], [1, 0], [0, 0]], jnp.int32)
    merged = _merge(automaton, neural, threshold=4)
    assert merged.tokens.tolist() == [[1, 2, 3], [1, 9, 0], [1, 2, 3], [1, 0, 0], [0, 0, 0]]
    assert merged.length.tolist() == [3, 2, 3, 2, 2]
    assert merged.match_length.tolist() == [1, 0, 4, 0, 0]
    assert merged.match_end.tolist() == [7, 0, 7, 0, 0]


def test_sampling_at_temperature_zero_is_greedy():
    prompts, lengths = random_prompts(8, [20, 9])
    sampling = jax_sa.Sampling(jax.random.key(0), temperature=0.0, top_k=3, top_p=0.5)
    generation = generate(prompts, lengths, 40, sampling=sampling, **MODES["hybrid"])
    assert_greedy(generation, prompts, lengths, [40, 40])


def test_sampling_has_the_models_distribution():
    """Frequencies of whole texts of 3 tokens, with drafts that are often wrong."""
    rows, vocabulary = 40_000, 2
    logits = jnp.asarray([[0.3, 1.0], [1.5, -0.5]])

    def chain(params, tokens, cache):
        return params[tokens], cache

    generation = jax_sa.generate(
        chain,
        logits,
        jnp.tile(jnp.asarray([[0, 1, 1, 0, 1, 0]], jnp.int32), (rows, 1)),
        jnp.full(rows, 6, jnp.int32),
        toy_model.init_cache(rows, 1),
        max_new_tokens=3,
        state=jax_sa.init(rows, 9),
        sampling=jax_sa.Sampling(jax.random.key(1), temperature=jnp.full(rows, 0.7)),
    )
    assert generation.accepted.sum() > rows // 4
    p = np.asarray(jax.nn.softmax(logits / 0.7, axis=-1), np.float64)
    counts = np.zeros((vocabulary,) * 3)
    np.add.at(counts, tuple(np.asarray(generation.tokens).T), 1)
    expected = rows * p[0][:, None, None] * p[:, :, None] * p[None]
    chi_square = np.sum((counts - expected) ** 2 / expected)
    assert chi_square < 24.3  # 7 degrees of freedom: once in 1000


def compile_generate(sharding=None, *, automaton=False, **options):
    """A generation as a user's jitted function holds it, compiled from shapes alone."""

    def program(params, prompts, cache, state):
        return jax_sa.generate(
            toy_model.model,
            params,
            prompts,
            jnp.full(ROWS, prompts.shape[1], jnp.int32),
            cache,
            max_new_tokens=16,
            state=state,
            **options,
        )

    shapes = jax.eval_shape(
        lambda: (
            PARAMS,
            jnp.zeros((ROWS, 8), jnp.int32),
            toy_model.init_cache(ROWS, LARGE),
            jax_sa.init(ROWS, 2 * LARGE) if automaton else None,
        )
    )
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes
    )
    return jax.jit(program, donate_argnums=(2, 3)).lower(*shapes).compile(), shapes[2:]


def assert_in_place(compiled, donated):
    """No copy as large as a leaf of a slot, and no room for a slot."""
    room = jax_sa.get_state_size(LARGE)
    copies.assert_in_place(compiled, donated, smallest=4 * SMALLEST_COPY, room=room)


@pytest.mark.parametrize("mode", MODES)
def test_in_place(mode):
    """The branches of a step take the cache in turns, and never the automata."""
    assert_in_place(*compile_generate(**MODES[mode]))


h100 = test_gpu_program.h100  # the fixture


@pytest.mark.parametrize("mode", MODES)
def test_in_place_on_a_gpu(h100, mode):
    assert_in_place(*compile_generate(h100, **MODES[mode]))


def test_the_check_sees_copies():
    def copying(state):
        return jax.lax.fori_loop(0, 9, lambda i, s: jnp.where(s > i, s, s[::-1]), state.tokens)

    state = jax.eval_shape(lambda: jax_sa.init(ROWS, LARGE))
    with pytest.raises(AssertionError):
        assert_in_place(jax.jit(copying, donate_argnums=0).lower(state).compile(), state)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prompts": PROMPTS[0]}, ValueError, r"prompts: expected int32\[B, P\], got int32\[3\]"),
        ({"prompts": PROMPTS[:, :0]}, ValueError, r"prompts: expected a row and.*got \[2, 0\]"),
        ({"prompts": [[1]]}, TypeError, "prompts: expected int32.*got list"),
        ({"prompts": np.ones((2, 3), int)}, TypeError, "prompts: expected int32.*got int64"),
        ({"prompt_lengths": PROMPTS}, ValueError, r"prompt_lengths: expected int32\[2,\]"),
        ({"cache": toy_model.init_cache(3, 9)}, ValueError, r"cache.length: .*\[2,\], got.*\[3\]"),
        ({"cache": {}}, TypeError, "cache.length: expected int32.*got NoneType"),
        ({"state": jax_sa.init(3, 9)}, ValueError, r"state: expected 2 slots, got 3"),
        ({"state": {}}, TypeError, "state: expected a jax_sa.State"),
        ({"limits": jnp.ones(3, jnp.int32)}, ValueError, r"limits: expected int32\[2,\]"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens: expected an int"),
        ({"max_draft": 0}, ValueError, "max_draft: expected an int"),
        ({"threshold": 0}, ValueError, r"threshold: expected an int in \[1, .*got 0"),
        ({"min_match": 3, "max_match": 2}, ValueError, "max_match: expected an int"),
        ({"occurrence": "last"}, ValueError, "occurrence: expected one of"),
        ({"stop_tokens": [2]}, TypeError, r"stop_tokens: expected a tuple of ints, got \[2\]"),
        ({"stop_tokens": ("a",)}, TypeError, "stop_tokens: expected an int .*got 'a'"),
        ({"model": None}, TypeError, "model: expected a function, got NoneType"),
        ({"drafter": print}, TypeError, "drafter: expected a jax_sa.NeuralDrafter"),
        ({"sampling": 0.7}, TypeError, "sampling: expected a jax_sa.Sampling, got float"),
        (
            {"drafter": DRAFTER._replace(max_draft=3)},
            ValueError,
            r"drafter's tokens: expected int32\[2, 3\], got int32\[2, 2\]",
        ),
    ],
)
def test_errors(arguments, error, message):
    arguments = {
        "model": toy_model.model,
        "params": PARAMS,
        "prompts": PROMPTS,
        "prompt_lengths": jnp.full(2, 3, jnp.int32),
        "cache": toy_model.init_cache(2, 32),
        "max_new_tokens": 4,
    } | arguments
    with pytest.raises(error, match=message):
        jax_sa.generate(**arguments)
