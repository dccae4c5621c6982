"""Generations are those of plain greedy decoding, in fewer steps, in one program, in place."""

import dataclasses
import functools
import inspect

import copies
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_gpu_program
import toy_model

import jax_sa
from jax_sa import neural_drafter

PARAMS = jnp.asarray(toy_model.TABLE)
DRAFTER = toy_model.drafter(2)
MAX_DRAFT = 8
WIDTH, MOST = 40, 200  # of prompts and answers: programs of one shape are compiled once
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
FEW = 2  # tokens of a draft where more widths of a step would be no other case
SLOW_PARTS = {"automaton": pytest.mark.slow, "neural": pytest.mark.slow}
"""Modes that are parts of the hybrid."""


def random_prompts(seed, lengths, width=WIDTH):
    random = np.random.default_rng(seed)
    prompts = random.integers(0, toy_model.VOCABULARY, (len(lengths), width))
    return jnp.asarray(prompts, jnp.int32), jnp.asarray(lengths, jnp.int32)


def full_state(rows, capacity, room):
    """Automata in which other texts have left room for so many tokens."""
    other = jnp.asarray(np.random.default_rng(9).integers(0, 11, (rows, capacity)), jnp.int32)
    lengths = jnp.full(rows, capacity - room, jnp.int32)
    return jax_sa.extend(jax_sa.init(rows, capacity), other, lengths)


def generate(
    prompts, lengths, limits, *, most=MOST, automaton=False, room=256, cache_size=256, **options
):
    """`limits`: new tokens, of all rows or of each; `most`: those there are places for."""
    rows, options = len(lengths), {"max_draft": MAX_DRAFT} | options
    state = full_state(rows, 256, room) if automaton else None
    return jax_sa.generate(
        toy_model.model,
        PARAMS,
        prompts,
        lengths,
        toy_model.init_cache(rows, cache_size),
        max_new_tokens=most,
        limits=jnp.broadcast_to(jnp.asarray(limits, jnp.int32), rows),
        state=state,
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


def modes_and_stop_tokens():
    """All modes without stop tokens; with them, those that are no part of the hybrid."""
    for mode in MODES:
        for stop_tokens in ((), (3, 8), (0,)):
            marks = SLOW_PARTS.get(mode, ()) if stop_tokens else ()
            yield pytest.param(mode, stop_tokens, id=f"{mode}-{stop_tokens}", marks=marks)


@pytest.mark.parametrize(("mode", "stop_tokens"), list(modes_and_stop_tokens()))
@pytest.mark.parametrize("seed", range(3))
def test_the_output_is_that_of_greedy_decoding(mode, stop_tokens, seed):
    for rows in ([1, 2, 17], [40, 5, 33]):
        prompts, lengths = random_prompts(seed, rows)
        generation = generate(prompts, lengths, 90, stop_tokens=stop_tokens, **MODES[mode])
        assert_greedy(generation, prompts, lengths, [90] * 3, stop_tokens)


@pytest.mark.parametrize("mode", MODES)
def test_limits(mode):
    prompts, lengths = random_prompts(5, [9, 30, 12])
    few = generate(prompts, lengths, [0, 1, 2], **MODES[mode])
    assert_greedy(few, prompts, lengths, [0, 1, 2])
    assert few.steps[0] == 0 and few.steps[1] == 1
    prompts, lengths = random_prompts(6, [4, 8, 2])
    many = generate(prompts, lengths, [33, MOST, MOST + 1], **MODES[mode])
    assert_greedy(many, prompts, lengths, [33, MOST, MOST])


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
@pytest.mark.parametrize("room", [1, 20, 45])
def test_full_slots_go_on_without_drafts(mode, room):
    prompts, lengths = random_prompts(2, [40, 3, 19])
    generation = generate(prompts, lengths, 60, room=room, **MODES[mode])
    assert_greedy(generation, prompts, lengths, [60] * 3)
    assert np.all(np.asarray(generation.state.status) == jax_sa.Status.FULL)


@pytest.mark.parametrize("mode", MODES)
def test_rows_without_a_prompt_are_idle(mode):
    for idle in ([0, -1], [-9, WIDTH + 1]):
        prompts, lengths = random_prompts(3, [4, 4, 4])
        given = jnp.asarray([idle[0], 4, idle[1]], jnp.int32)
        generation = generate(prompts, given, 12, **MODES[mode])
        assert_greedy(generation, prompts, lengths, [0, 12, 0])
        assert ((generation.steps > 0) == (generation.lengths > 0)).all()
        if generation.state is not None:
            assert generation.state.length.tolist() == [0, 16, 0]


def test_a_cache_without_room_for_drafts_at_the_end():
    """No token that counts is beyond prompt and limit, so a cache of just that size will do."""
    prompts, lengths = random_prompts(4, [20, 20])
    generation = generate(prompts, lengths, 30, most=30, cache_size=50, **MODES["hybrid"])
    assert_greedy(generation, prompts, lengths, [30, 30])


def test_steps_are_the_loop():
    prompts, lengths = random_prompts(6, [12, 30, 7])
    expected = generate(prompts, lengths, 50, stop_tokens=(3, 8), **MODES["hybrid"])
    decoder = jax_sa.Decoder(
        toy_model.model, drafter=DRAFTER, max_draft=MAX_DRAFT, stop_tokens=(3, 8)
    )
    generation = decoder.init(
        PARAMS,
        prompts,
        lengths,
        toy_model.init_cache(3, 256),
        max_new_tokens=MOST,
        limits=jnp.full(3, 50, jnp.int32),
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


def test_widths():
    """Powers of two up to the longest draft, the neural one's length, and none at all."""
    assert jax_sa.Decoder(toy_model.model).widths(drafts=False) == (0,)
    assert jax_sa.Decoder(toy_model.model, max_draft=1).widths() == (0, 1)
    assert jax_sa.Decoder(toy_model.model, max_draft=6).widths() == (0, 1, 2, 4, 6)
    assert jax_sa.Decoder(toy_model.model, max_draft=16).widths() == (0, 1, 2, 4, 8, 16)
    decoder = jax_sa.Decoder(toy_model.model, max_draft=4, drafter=DRAFTER._replace(max_draft=3))
    assert decoder.widths() == (0, 1, 2, 3, 4)
    assert decoder.widths(drafts=False) == (0, 1, 2, 3)


@pytest.mark.parametrize("mode", ["automaton", "hybrid"])
@pytest.mark.parametrize("index", range(4))
def test_costs_choose_the_width_and_never_the_tokens(mode, index):
    prompts, lengths = random_prompts(3, [30, 21, 8])
    decoder = jax_sa.Decoder(
        toy_model.model, max_draft=MAX_DRAFT, drafter=MODES[mode].get("drafter")
    )
    widths = decoder.widths()
    costs = jnp.where(jnp.arange(len(widths)) == index, 1.0, jnp.inf).astype(jnp.float32)
    if decoder.drafter is not None:
        costs = jnp.append(jnp.asarray([1.0, jnp.inf]), costs)  # of its reading; a step without it
    cache, state = toy_model.init_cache(3, 256), jax_sa.init(3, 256)
    done = decoder.generate(
        PARAMS, prompts, lengths, cache, max_new_tokens=40, state=state, costs=costs
    )
    for row, length in enumerate(lengths.tolist()):
        expected = toy_model.greedy(prompts[row, :length].tolist(), 40)
        assert done.tokens[row].tolist() == expected
    assert (done.drafted <= widths[index] * done.steps).all()
    assert bool(done.drafted.any()) == (widths[index] > 0)


@pytest.mark.parametrize(
    ("lengths", "limits", "drafts"),
    [
        ([8, 8], [50, 50], True),
        ([8, 0], [50, 50], False),  # the other takes as long as ever
        ([8, 0], [50, 10], True),
        ([8, 0], [10, 50], False),
    ],
)
def test_drafts_are_verified_where_the_slowest_row_gains(lengths, limits, drafts):
    """A wide step costs twice as much; drafts of a long match hold nearly always."""
    decoder = jax_sa.Decoder(toy_model.model, max_draft=MAX_DRAFT)
    generation = decoder.init(
        *(PARAMS, PROMPTS, jnp.full(2, 3, jnp.int32), toy_model.init_cache(2, 128)),
        max_new_tokens=50,
        state=jax_sa.init(2, 128),
        limits=jnp.asarray(limits, jnp.int32),
    )
    draft = jax_sa.Draft(
        tokens=jnp.ones((2, MAX_DRAFT), jnp.int32),
        length=jnp.asarray(lengths, jnp.int32),
        match_length=jnp.full(2, 30, jnp.int32),
        match_end=jnp.full(2, 30, jnp.int32),
        source=jnp.full(2, jax_sa.Source.OWN, jnp.int32),
    )
    generation = dataclasses.replace(generation, draft=draft)
    costs = jnp.full(len(decoder.widths()), 2.0, jnp.float32).at[0].set(1.0)
    generation, _ = decoder.step(PARAMS, generation, costs=costs)
    assert bool(generation.drafted.any()) == drafts


ONE_AHEAD = toy_model.drafter(1)._replace(memory=())


def run_with_drafter(drafter, with_automata, costs):
    """A generation of greedy tokens, and how many of its new ones the drafter was told in a row."""
    decoder = jax_sa.Decoder(toy_model.model, max_draft=1, drafter=drafter)
    prompts, lengths = random_prompts(3, [30, 21, 8])
    done = decoder.generate(
        PARAMS,
        prompts,
        lengths,
        toy_model.init_cache(3, 256),
        max_new_tokens=40,
        state=jax_sa.init(3, 256) if with_automata else None,
        costs=jnp.asarray(costs, jnp.float32),
    )
    assert_greedy(done, prompts, lengths, [40] * 3)
    return done, done.cache.heard_length - lengths


@pytest.mark.parametrize("with_automata", [True, False])
@pytest.mark.parametrize(
    ("reading", "alone", "runs"),
    [
        (0.0, 1.0, False),
        (0.0, 1.7, False),
        (0.0, 1.8, True),
        (1.0, 1.8, True),
        (3.0, 1.8, False),
        (jnp.inf, 1.8, False),
        (jnp.nan, 1.8, True),
        (-9.0, 1.7, False),
    ],
)
def test_a_drafter_that_can_never_pay_for_itself_does_not_run(reading, alone, runs, with_automata):
    """Even 1.9 tokens for a step that costs 3 are hardly more per cost than one for 1.7.

    21 such steps write the 40 tokens: each bears so much of the reading.
    """
    done, told = run_with_drafter(ONE_AHEAD, with_automata, [reading, alone, 2.0, 3.0])
    assert (told > 0).all() if runs else not done.cache.heard_length.any()


def always_wrong(params, accepted, cache):
    tokens, cache = ONE_AHEAD.draft(params, accepted, cache)
    return (tokens + 1) % toy_model.VOCABULARY, cache


@pytest.mark.parametrize(
    ("drafter", "with_automata", "stays"),
    [
        (ONE_AHEAD, False, True),
        (ONE_AHEAD._replace(draft=always_wrong), False, False),
        (ONE_AHEAD._replace(draft=always_wrong), True, False),
    ],
    ids=["right", "wrong", "wrong-beside-automata"],
)
def test_a_drafter_that_loses_time_is_stopped(drafter, with_automata, stays):
    """At its best each would pay: 1.9 tokens for 1.6."""
    done, told = run_with_drafter(drafter, with_automata, [0.0, 1.0, 1.5, 1.6])
    assert (told > 1).all()  # it ran
    assert told.tolist() == [40] * 3 if stays else (told < 30).all()
    assert (float(done.drafter_loss) <= neural_drafter.PATIENCE) == stays


def test_loss_of_a_drafter():
    none, half = jnp.float32(0.0), jnp.float32(0.5)
    assert neural_drafter.update_loss(half, jnp.float32(3.0), jnp.float32(4.0)) == 0.75
    assert neural_drafter.update_loss(half, jnp.float32(4.0), jnp.float32(4.0)) == 0.5
    assert neural_drafter.update_loss(half, jnp.float32(5.0), jnp.float32(4.0)) == 0.25
    assert neural_drafter.update_loss(half, jnp.float32(9.0), jnp.float32(4.0)) == none
    # What a step without it takes is not known.
    assert neural_drafter.update_loss(half, jnp.float32(3.0), none) == none


def test_calibration_of_a_drafter_measures_its_reading_first():
    prompts, lengths = random_prompts(2, [40, 33])
    decoder = jax_sa.Decoder(toy_model.model, max_draft=2, drafter=ONE_AHEAD)
    buffers = {"state": jax_sa.init(2, 256)}
    measured = decoder.calibrate(
        PARAMS, prompts, lengths, toy_model.init_cache(2, 256), max_new_tokens=30, **buffers
    )
    assert measured.costs.shape == (2 + len(decoder.widths()),)
    assert measured.costs[0] >= 0 and (measured.costs[1:] > 0).all()
    assert not measured.cache.length.any()
    buffers = {"state": measured.state, "costs": measured.costs}
    done = decoder.generate(PARAMS, prompts, lengths, measured.cache, max_new_tokens=30, **buffers)
    assert_greedy(done, prompts, lengths, [30] * 2)


def test_costs_of_another_number_are_an_error():
    decoder = jax_sa.Decoder(toy_model.model)
    arguments = PARAMS, PROMPTS, jnp.full(2, 3, jnp.int32), toy_model.init_cache(2, 32)
    with pytest.raises(ValueError, match=r"costs: expected float32\[1,\], got float32\[3\]"):
        decoder.generate(*arguments, max_new_tokens=4, costs=jnp.ones(3, jnp.float32))


def test_other_costs_compile_nothing():
    calls = []

    def counting(params, tokens, cache):
        calls.append(tokens.shape)
        return toy_model.model(params, tokens, cache)

    decoder = jax_sa.Decoder(counting, max_draft=2)
    seen = []
    for cost in (1.0, 9.0):
        decoder.generate(
            PARAMS,
            PROMPTS,
            jnp.full(2, 3, jnp.int32),
            toy_model.init_cache(2, 32),
            max_new_tokens=4,
            state=jax_sa.init(2, 32),
            costs=jnp.asarray([1.0, cost, cost], jnp.float32),
        )
        seen.append(len(calls))
    assert seen[0] == seen[1]


def test_calibration_measures_every_width_and_leaves_the_buffers_as_they_were():
    prompts, lengths = random_prompts(5, [12, 20])
    decoder = jax_sa.Decoder(toy_model.model, max_draft=MAX_DRAFT)
    cache, state = toy_model.init_cache(2, 256), jax_sa.init(2, 256)
    seen = []
    measured = decoder.calibrate(
        PARAMS,
        prompts,
        lengths,
        cache,
        max_new_tokens=30,
        state=state,
        on_progress=lambda *done: seen.append(done),
    )
    widths = decoder.widths()
    assert measured.costs.shape == (len(widths),) and (measured.costs > 0).all()
    assert seen == [(i + 1, len(widths)) for i in range(len(widths))]
    assert not measured.cache.length.any() and not measured.state.length.any()
    done = decoder.generate(
        PARAMS,
        prompts,
        lengths,
        measured.cache,
        max_new_tokens=30,
        state=measured.state,
        costs=measured.costs,
    )
    for row, length in enumerate(lengths.tolist()):
        assert done.tokens[row].tolist() == toy_model.greedy(prompts[row, :length].tolist(), 30)


def drafts_of_a_generation(threshold, automaton=True):
    """The draft that each step verifies, of every row."""
    prompts, lengths = random_prompts(1, [40, 35, 30])
    decoder = jax_sa.Decoder(
        toy_model.model, drafter=DRAFTER, max_draft=MAX_DRAFT, threshold=threshold
    )
    generation = decoder.init(
        PARAMS,
        prompts,
        lengths,
        toy_model.init_cache(3, 256),
        max_new_tokens=60,
        state=jax_sa.init(3, 256) if automaton else None,
    )
    drafts = [jax.device_get(generation.draft)]
    while not generation.finished.all():
        generation, _ = decoder.step(PARAMS, generation)
        drafts.append(jax.device_get(generation.draft))
    return drafts


def test_a_threshold_that_nothing_reaches_gives_the_neural_drafts():
    hybrid = drafts_of_a_generation(10**9)
    neural = drafts_of_a_generation(4, automaton=False)
    assert len(hybrid) == len(neural)
    for one, other in zip(hybrid, neural, strict=True):
        np.testing.assert_array_equal(one.length, other.length)
        np.testing.assert_array_equal(one.tokens[:, :2], other.tokens)
        assert not one.tokens[:, 2:].any() and not one.match_length.any()
    assert len(drafts_of_a_generation(1)) != len(neural)


@pytest.mark.parametrize("threshold", [1, 3, 4, 6, 10**9])
def test_decoder_manager_and_merge_drafts_agree(threshold):
    """One text, one neural draft, three ways to the hybrid's draft."""
    prompts = random_prompts(11, [30] * 8, width=30)[0]
    lengths = jnp.full(8, 30, jnp.int32)
    options = {"max_draft": MAX_DRAFT, "threshold": threshold}
    decoder = jax_sa.Decoder(toy_model.model, drafter=DRAFTER, **options)
    state = jax_sa.init(8, 64)
    generation = decoder.init(
        PARAMS, prompts, lengths, toy_model.init_cache(8, 64), max_new_tokens=32, state=state
    )
    rows = jnp.arange(8, dtype=jnp.int32)
    last, before = prompts[rows, -1], prompts[rows, -2]
    first = PARAMS[before, last]
    neural = jnp.stack([first, PARAMS[last, first]], axis=1)

    _, automaton = jax_sa.extend_lookup(jax_sa.init(8, 64), prompts, lengths, max_draft=MAX_DRAFT)
    merged = jax_sa.merge_drafts(automaton, neural, threshold)
    manager = jax_sa.SuffixAutomatonManager(jax_sa.SAConfig(64, 8, **options), 8)
    for row in range(8):
        manager.add_request(row, np.asarray(prompts[row]))
    manager.prepare(range(8))
    jax.tree.map(np.testing.assert_array_equal, manager.lookup(neural), merged)
    jax.tree.map(np.testing.assert_array_equal, generation.draft, merged)


@pytest.mark.parametrize(
    ("threshold", "tree_nodes"),
    [
        (3, None),
        (10**9, 6),
        pytest.param(3, 6, marks=pytest.mark.slow),
        pytest.param(10**9, None, marks=pytest.mark.slow),
    ],
)
def test_neural_drafts_are_followed_on(threshold, tree_nodes):
    """The draft of a decoder, by the ops that it is made of; the output stays the same."""
    prompts = random_prompts(11, [30] * 8, width=30)[0]
    lengths = jnp.full(8, 30, jnp.int32)
    decoder = jax_sa.Decoder(
        toy_model.tree_model,
        drafter=DRAFTER,
        follow_neural=True,
        max_draft=6,
        threshold=threshold,
        tree_nodes=tree_nodes,
    )
    generation = decoder.init(
        *(PARAMS, prompts, lengths, toy_model.init_cache(8, 80)),
        max_new_tokens=32,
        state=jax_sa.init(8, 80),
    )
    rows = jnp.arange(8, dtype=jnp.int32)
    last, before = prompts[rows, -1], prompts[rows, -2]
    first = PARAMS[before, last]
    neural = jnp.stack([first, PARAMS[last, first]], axis=1)
    state, draft = jax_sa.extend_lookup(jax_sa.init(8, 80), prompts, lengths, max_draft=6)
    following = jax_sa.lookup_after(state, neural, jnp.full(8, 2, jnp.int32), max_draft=4)
    assert int(following.length.sum()) > 0
    joined = jax_sa.join_drafts(neural, following)
    if tree_nodes is None:
        expected = jax_sa.merge_drafts(draft, joined, threshold)
    else:
        known = jnp.arange(6, dtype=jnp.int32)[None] < joined.length[:, None]
        expected = jax_sa.lookup_tree(
            state,
            max_nodes=tree_nodes,
            max_draft=6,
            neural=jnp.where(known, joined.tokens, -1),
            threshold=threshold,
        )
    jax.tree.map(np.testing.assert_array_equal, generation.draft, expected)
    while not generation.finished.all():
        generation, _ = decoder.step(PARAMS, generation)
    assert_greedy(generation, prompts, lengths, [32] * 8)


def test_a_scan_cannot_follow_neural_drafts():
    with pytest.raises(TypeError, match="state: expected a jax_sa.State for lookup_after"):
        jax_sa.generate(
            *(
                toy_model.model,
                PARAMS,
                PROMPTS,
                jnp.full(2, 3, jnp.int32),
                toy_model.init_cache(2, 64),
            ),
            max_new_tokens=4,
            state=jax_sa.init(2, 64, index="scan"),
            drafter=DRAFTER,
            follow_neural=True,
        )


def test_sampling_at_temperature_zero_is_greedy():
    prompts, lengths = random_prompts(8, [20, 9])
    sampling = jax_sa.Sampling(jax.random.key(0), temperature=0.0, top_k=3, top_p=0.5)
    options = {"sampling": sampling, "max_draft": FEW}
    generation = generate(prompts, lengths, 40, **options, **MODES["hybrid"])
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
        costs=jnp.ones(6, jnp.float32),
    )
    assert generation.accepted.sum() > rows // 4
    p = np.asarray(jax.nn.softmax(logits / 0.7, axis=-1), np.float64)
    counts = np.zeros((vocabulary,) * 3)
    np.add.at(counts, tuple(np.asarray(generation.tokens).T), 1)
    expected = rows * p[0][:, None, None] * p[:, :, None] * p[None]
    chi_square = np.sum((counts - expected) ** 2 / expected)
    assert chi_square < 24.3  # 7 degrees of freedom: once in 1000


def sharded_generate(mode, in_specs, arguments, **options):
    """A generation inside shard_map, with its default checks, of 2 rows on each of 2 devices."""
    devices = np.reshape(jax.local_devices(backend="cpu")[:4], (2, 2))
    mesh = jax.sharding.Mesh(devices, ("data", "model"))
    options = dict(MODES[mode]) | options
    automaton = options.pop("automaton", False)

    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=in_specs, out_specs=jax.sharding.PartitionSpec("data")
    )
    def program(prompts, lengths, key):
        sampling = None if key is None else jax_sa.Sampling(key[0])
        generation = jax_sa.generate(
            toy_model.model,
            PARAMS,
            prompts,
            lengths,
            toy_model.init_cache(2, 128),
            max_new_tokens=30,
            state=jax_sa.init(2, 128) if automaton else None,
            max_draft=FEW,
            sampling=sampling,
            **options,
        )
        return generation.tokens, generation.lengths, generation.steps, generation.accepted

    return jax.device_get(program(*arguments))


@pytest.mark.parametrize("mode", MODES)
def test_inside_shard_map(mode):
    """Slots are local: each shard's automata are those of its own rows."""
    P = jax.sharding.PartitionSpec
    prompts, lengths = random_prompts(12, [20, 7, 11, 16])
    got = sharded_generate(mode, (P("data"), P("data"), P()), (prompts, lengths, None))
    assert got[1].tolist() == [30] * 4
    for row, length in enumerate(lengths.tolist()):
        assert got[0][row].tolist() == toy_model.greedy(prompts[row, :length].tolist(), 30)


@pytest.mark.parametrize("mode", ["none", "hybrid"])
def test_inside_shard_map_when_only_the_key_varies(mode):
    P = jax.sharding.PartitionSpec
    prompts, lengths = random_prompts(13, [20, 7])
    keys = jax.random.split(jax.random.key(0), 2)
    tokens, counts, steps, accepted = sharded_generate(
        mode, (P(), P(), P("data")), (prompts, lengths, keys)
    )
    assert counts.tolist() == [30] * 4 == (steps + accepted).tolist()
    assert (tokens[:2] != tokens[2:]).any()
    for shard in range(2):
        options = {"sampling": jax_sa.Sampling(keys[shard]), "max_draft": FEW}
        alone = generate(prompts, lengths, 30, **options, **MODES[mode])
        np.testing.assert_array_equal(tokens[2 * shard : 2 * shard + 2], alone.tokens[:, :30])


def test_decoder_generate_is_generate():
    prompts, lengths = random_prompts(9, [9, 14, 30])
    expected = generate(prompts, lengths, MOST, stop_tokens=(3, 8), **MODES["hybrid"])
    decoder = jax_sa.Decoder(
        toy_model.model, drafter=DRAFTER, max_draft=MAX_DRAFT, stop_tokens=(3, 8)
    )
    cache, state = toy_model.init_cache(3, 256), jax_sa.init(3, 256)
    limits = jnp.full(3, MOST, jnp.int32)
    generation = decoder.generate(
        *(PARAMS, prompts, lengths, cache), max_new_tokens=MOST, limits=limits, state=state
    )
    jax.tree.map(np.testing.assert_array_equal, generation, expected)


def test_decoders_of_the_same_functions_share_compiled_code():
    calls = []

    def counting(params, tokens, cache):
        calls.append(tokens.shape)
        return toy_model.model(params, tokens, cache)

    def run(**options):
        cache = toy_model.init_cache(2, 32)
        lengths = jnp.full(2, 3, jnp.int32)
        jax_sa.generate(counting, PARAMS, PROMPTS, lengths, cache, max_new_tokens=4, **options)
        return len(calls)

    first = run(max_draft=4, draft_factor=2, stop_tokens=(5,))
    assert (
        run(max_draft=np.int64(4), draft_factor=np.float32(2), stop_tokens=(np.int8(5),)) == first
    )
    assert run(max_draft=5, draft_factor=2, stop_tokens=(5,)) > first


def test_numpys_numbers_are_pythons():
    plain = {"max_draft": 4, "min_match": 2, "max_match": 9, "draft_factor": 1.5, "periodic": True}
    plain |= {"threshold": 3, "stop_tokens": (1, 2), "drafter": DRAFTER}
    numpys = {
        "max_draft": np.int32(4),
        "min_match": np.uint8(2),
        "max_match": jnp.int32(9),
        "draft_factor": np.float32(1.5),
        "periodic": np.True_,
        "threshold": np.int64(3),
        "stop_tokens": (np.int32(1), jnp.int32(2)),
        "drafter": DRAFTER._replace(max_draft=np.int64(2)),
    }
    decoder, other = (jax_sa.Decoder(toy_model.model, **options) for options in (plain, numpys))
    assert decoder == other and hash(decoder) == hash(other)
    for name in plain:
        assert type(getattr(other, name)) is type(getattr(decoder, name))
    assert [type(token) for token in other.stop_tokens] == [int, int]
    assert type(other.drafter.max_draft) is int


def test_help_shows_the_contract_of_a_model():
    contract = inspect.getdoc(jax_sa.Decoder)
    for words in ("model(params, tokens int32[B, T], cache)", "cache.length[b] + t", "`length`"):
        assert words in contract


def compile_generate(sharding=None, *, automaton=False, pool=False, **options):
    """A generation as a user's jitted function holds it, compiled from shapes alone."""

    def program(params, prompts, cache, state, pool):
        return jax_sa.generate(
            toy_model.model,
            params,
            prompts,
            jnp.full(ROWS, prompts.shape[1], jnp.int32),
            cache,
            max_new_tokens=16,
            state=state,
            pool=pool,
            **options,
        )

    shapes = jax.eval_shape(
        lambda: (
            PARAMS,
            jnp.zeros((ROWS, 8), jnp.int32),
            toy_model.init_cache(ROWS, LARGE),
            jax_sa.init(ROWS, 2 * LARGE) if automaton else None,
            jax_sa.init_pool(16 * LARGE) if pool else None,
        )
    )
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes
    )
    return jax.jit(program, donate_argnums=(2, 3)).lower(*shapes).compile(), shapes[2:4]


def assert_in_place(compiled, donated):
    """No copy as large as a leaf of a slot, and no room for a slot."""
    room = jax_sa.get_state_size(LARGE)
    copies.assert_in_place(compiled, donated, smallest=4 * SMALLEST_COPY, room=room)


IN_PLACE = MODES | {"pool": {"automaton": True, "pool": True}}


@pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=SLOW_PARTS.get(mode, ())) for mode in IN_PLACE]
)
def test_in_place(mode):
    """The branches of a step take the cache in turns, and never the automata; a pool is read."""
    assert_in_place(*compile_generate(**IN_PLACE[mode]))


h100 = test_gpu_program.h100  # the fixture


@pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=SLOW_PARTS.get(mode, ())) for mode in IN_PLACE]
)
def test_in_place_on_a_gpu(h100, mode):
    assert_in_place(*compile_generate(h100, **IN_PLACE[mode]))


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
        ({"prompts": [[1], [2, 3]]}, TypeError, "prompts: .*different lengths: jax_sa.pad_prompts"),
        ({"prompts": [[1.5], [2.0]]}, TypeError, "prompts: expected int32.*got float64"),
        ({"prompts": np.full((2, 3), 2**31)}, ValueError, "prompts: expected integers that int32"),
        ({"prompt_lengths": PROMPTS}, ValueError, r"prompt_lengths: expected int32\[2,\]"),
        ({"cache": toy_model.init_cache(3, 9)}, ValueError, r"cache.length: .*\[2,\], got.*\[3\]"),
        ({"cache": {}}, TypeError, r"cache: .*`length`.*got dict: jax_sa.KVCache\(length, kv\)"),
        ({"state": jax_sa.init(3, 9)}, ValueError, r"state: expected 2 slots, got 3"),
        ({"state": {}}, TypeError, "state: expected a jax_sa.State"),
        ({"state": jax_sa.init(2, 6)}, ValueError, "state: .*max_seq_len of at least 7.*got 6"),
        ({"logits_fn": 1}, TypeError, "logits_fn: expected a function, got int"),
        ({"logits_fn": print, "tree_nodes": 4}, ValueError, "logits_fn: expected none with tree"),
        ({"draft_widths": [2]}, TypeError, r"draft_widths: expected a tuple of ints, got \[2\]"),
        (
            {"draft_widths": (99,)},
            ValueError,
            r"draft_widths: expected an int in \[1, 16\]",
        ),
        ({"limits": jnp.ones(3, jnp.int32)}, ValueError, r"limits: expected int32\[2,\]"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens: expected an int"),
        ({"max_draft": 0}, ValueError, "max_draft: expected an int"),
        ({"follow_neural": 1}, TypeError, "follow_neural: expected a bool, got 1"),
        ({"threshold": 0}, ValueError, r"threshold: expected an int in \[1, .*got 0"),
        ({"min_match": 3, "max_match": 2}, ValueError, "max_match: expected an int"),
        ({"occurrence": "last"}, ValueError, "occurrence: expected one of"),
        ({"stop_tokens": [2]}, TypeError, r"stop_tokens: expected a tuple of ints, got \[2\]"),
        ({"stop_tokens": ("a",)}, TypeError, "stop_tokens: expected an int .*got 'a'"),
        ({"model": None}, TypeError, "model: expected a function, got NoneType"),
        ({"drafter": print}, TypeError, "drafter: expected a jax_sa.NeuralDrafter"),
        ({"sampling": 0.7}, TypeError, "sampling: expected a jax_sa.Sampling, got float"),
        (
            {"drafter": DRAFTER._replace(memory=["heard"])},
            TypeError,
            r"drafter.memory: expected a tuple of names, got \['heard'\]",
        ),
        (
            {"drafter": DRAFTER._replace(memory=("said",))},
            ValueError,
            "drafter.memory: expected fields of the cache, got 'said'",
        ),
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


def pool_of(generation, groups=None, num_groups=1):
    """A pool of the texts of a generation."""
    slots = jnp.arange(generation.limits.size, dtype=jnp.int32)
    pool = jax_sa.init_pool(1024, num_groups=num_groups)
    return jax_sa.insert_slots(pool, generation.state, slots, groups=groups)


@pytest.mark.parametrize("mode", ["automaton", "hybrid"])
def test_texts_in_a_pool_come_again_in_fewer_steps(mode):
    prompts, lengths = random_prompts(1, [4, 9, 17])
    first = generate(prompts, lengths, 60, **MODES[mode])
    pool = pool_of(first)
    before = jax.tree.map(np.array, pool)
    again = generate(prompts, lengths, 60, pool=pool, **MODES[mode])
    assert_greedy(again, prompts, lengths, [60] * 3)
    assert (3 * again.steps < 2 * first.steps).all()
    jax.tree.map(np.testing.assert_array_equal, pool, before)


def test_rows_see_their_group_of_the_pool():
    prompts, lengths = random_prompts(1, [4, 9, 17])
    options = {"automaton": True, "costs": jnp.ones(5, jnp.float32)}  # every draft is verified
    first = generate(prompts, lengths, 60, **options)
    pool = pool_of(first, groups=jnp.asarray([1, 1, 0], jnp.int32), num_groups=2)
    steps = {}
    for group in (1, 0, -1):
        groups = jnp.full(3, group, jnp.int32)
        again = generate(prompts, lengths, 60, pool=pool, groups=groups, **options)
        assert_greedy(again, prompts, lengths, [60] * 3)
        steps[group] = again.steps.tolist()
    assert steps[-1] == first.steps.tolist()
    assert 3 * sum(steps[1][:2]) < 2 * sum(steps[0][:2])
    assert steps[0][2] < steps[1][2]


def test_steps_with_a_pool_are_those_of_generate():
    prompts, lengths = random_prompts(1, [4, 9, 17])
    pool = pool_of(generate(prompts, lengths, 30, automaton=True))
    groups = jnp.asarray([0, -1, 0], jnp.int32)
    decoder = jax_sa.Decoder(toy_model.model, max_draft=MAX_DRAFT)

    def arguments():
        cache, state = toy_model.init_cache(3, 256), jax_sa.init(3, 256)
        return (PARAMS, prompts, lengths, cache), {
            "max_new_tokens": MOST,
            "limits": jnp.full(3, 30, jnp.int32),
            "state": state,
            "pool": pool,
            "groups": groups,
        }

    given, options = arguments()
    whole = decoder.generate(*given, **options)
    given, options = arguments()
    generation = decoder.init(*given, **options)
    while not generation.finished.all():
        generation, _ = decoder.step(PARAMS, generation, pool=pool, groups=groups)
    jax.tree.map(np.testing.assert_array_equal, generation, whole)


def test_calibration_for_a_pool_compiles_what_runs():
    prompts, lengths = random_prompts(5, [12, 20])
    decoder = jax_sa.Decoder(toy_model.model, max_draft=2)
    given = {"max_new_tokens": 30, "pool": jax_sa.init_pool(64)}
    cache, state = toy_model.init_cache(2, 256), jax_sa.init(2, 256)
    costs, cache, state = decoder.calibrate(PARAMS, prompts, lengths, cache, state=state, **given)
    programs = jax_sa.Decoder._run._cache_size()
    buffers = {"state": state, "costs": costs}
    done = decoder.generate(PARAMS, prompts, lengths, cache, **buffers, **given)
    assert_greedy(done, prompts, lengths, [30] * 2)
    assert jax_sa.Decoder._run._cache_size() == programs


def test_a_pool_needs_automata():
    prompts, lengths = random_prompts(1, [4])
    with pytest.raises(ValueError, match="pool: expected a state"):
        generate(prompts, lengths, 3, pool=jax_sa.init_pool(64))
    with pytest.raises(ValueError, match="groups: expected a pool"):
        generate(prompts, lengths, 3, automaton=True, groups=jnp.zeros(1, jnp.int32))
    with pytest.raises(TypeError, match=r"pool: expected a jax_sa\.Pool"):
        generate(prompts, lengths, 3, automaton=True, pool=jax_sa.init(1, 8))
