"""The step-wise form of a packed decoder: the caller says which request a row begins or ends."""

import dataclasses
import inspect
import re
import textwrap

import jax
import jax.numpy as jnp
import packed_model
import pytest
from packed_model import all_greedy
from toy_model import TABLE

import jax_sa

PARAMS = jnp.asarray(TABLE)
B, P, G, CAPACITY = 2, 24, 20, 64
STOP = 4
DECODER = jax_sa.PackedDecoder(packed_model.model, stop_tokens=(STOP,), budget=16)
PROMPTS, LENGTHS = packed_model.make_prompts(9, P)
EXPECTED = all_greedy(PROMPTS, LENGTHS, jnp.full(9, G, jnp.int32), (STOP,))
# Another order, so that the first are long answers.
LONG = sorted(range(9), key=lambda request: -len(EXPECTED[request]))


def init(pages=12, **options):
    cache = packed_model.paged_cache(B, pages, 4, 12)
    options = {"state": jax_sa.init(B, CAPACITY), "rows": B, "max_prompt": P} | options
    return DECODER.init(cache, **options)


class Engine:
    """Requests in rows, and the text of each as it streams out."""

    def __init__(self, rows, admit=DECODER.admit):
        self.rows, self.admit = rows, admit
        self.running, self.texts = [None] * B, {}

    def begin(self, row, request):
        mine = jnp.arange(B) == row
        self.rows, began = self.admit(
            self.rows,
            jnp.where(mine[:, None], PROMPTS[request][None], 5),
            jnp.where(mine, LENGTHS[request], 0),
            jnp.where(mine, G, 0),
        )
        assert not began[1 - row]
        if began[row]:
            self.running[row], self.texts[request] = request, []
        return bool(began[row])

    def step(self):
        self.rows, step = DECODER.step(PARAMS, self.rows)
        for row, request in enumerate(self.running):
            length = int(step.length[row])
            if request is None:
                assert length == 0 and not step.finished[row]
                continue
            assert not step.tokens[row, length:].any()
            self.texts[request] += step.tokens[row, :length].tolist()
            if step.finished[row]:
                self.running[row] = None
        assert self.rows.idle.tolist() == [request is None for request in self.running]

    def finish(self, waiting=()):
        waiting = list(waiting)
        while waiting or self.running != [None] * B:
            for row in range(B):
                if self.running[row] is None and waiting and self.begin(row, waiting[0]):
                    waiting.pop(0)
            self.step()


@pytest.mark.parametrize("under_jit", [False, True])
def test_what_streams_out_is_the_answer(under_jit):
    admit = jax.jit(DECODER.admit, donate_argnums=0) if under_jit else DECODER.admit
    engine = Engine(init(), admit)
    engine.finish(reversed(range(9)))
    assert engine.texts == dict(enumerate(EXPECTED))


def test_steps_of_idle_rows_do_nothing():
    engine = Engine(init())
    engine.step()
    engine.finish([LONG[0]])
    engine.step()
    assert engine.texts == {LONG[0]: EXPECTED[LONG[0]]}


def test_a_row_at_work_does_not_begin():
    engine = Engine(init())
    assert engine.begin(0, LONG[0])
    assert not engine.begin(0, LONG[1])
    engine.finish()
    assert engine.texts == {LONG[0]: EXPECTED[LONG[0]]}


def test_a_row_without_pages_begins_when_others_have_ended():
    engine = Engine(init())
    assert engine.begin(0, LONG[0])
    assert not engine.begin(1, LONG[1])  # 12 pages of 4 tokens are not enough for both
    engine.finish()
    assert engine.begin(1, LONG[1])
    engine.finish()
    assert engine.texts == {request: EXPECTED[request] for request in LONG[:2]}


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_release(steps):
    """A cancelled request emits nothing more, another takes its pages, and a third goes on."""
    first, second, third = LONG[:3]
    engine = Engine(init(pages=24))
    assert engine.begin(0, first) and engine.begin(1, third)
    for _ in range(steps):
        engine.step()
    engine.rows = DECODER.release(engine.rows, jnp.asarray([True, False]))
    assert engine.rows.idle.tolist() == [True, False]
    engine.running[0] = None
    assert engine.begin(0, second)
    engine.finish()
    assert engine.texts[first] == EXPECTED[first][: len(engine.texts[first])] != EXPECTED[first]
    assert engine.texts[second] == EXPECTED[second] and engine.texts[third] == EXPECTED[third]


def test_a_released_row_drafts_nothing():
    rows = init()
    three = jnp.full(B, 3, jnp.int32)
    rows = dataclasses.replace(rows, draft=dataclasses.replace(rows.draft, length=three))
    rows = DECODER.release(rows, jnp.asarray([False, True]))
    assert rows.draft.length.tolist() == [3, 0]


def test_released_pages_are_freed_at_the_next_admission():
    engine = Engine(init())
    assert engine.begin(0, LONG[0]) and not engine.begin(1, LONG[1])
    engine.rows = DECODER.release(engine.rows, jnp.ones(B, bool))
    engine.running = [None, None]
    assert engine.begin(1, LONG[1])
    engine.finish()
    assert engine.texts[LONG[1]] == EXPECTED[LONG[1]]


def test_the_example_of_the_docstring():
    """It answers every request, with a caller that is as simple as can be."""
    doc = inspect.getdoc(jax_sa.PackedDecoder)
    (code,) = re.findall(r"step by step:\n\n((?:    .*\n)+)", doc)
    answers, began_as = {request: [] for request in range(9)}, [None] * 8
    offered = []

    def choose(requests, idle):
        offered[:] = [None] * 8
        waiting = list(requests)
        for row in range(8):
            if idle[row] and waiting:
                offered[row] = waiting.pop(0)
        rows = jnp.asarray([0 if r is None else r for r in offered])
        there = jnp.asarray([r is not None for r in offered])
        prompts = jnp.pad(PROMPTS[rows], ((0, 0), (0, 512 - P)))
        return prompts, jnp.where(there, LENGTHS[rows], 0), jnp.full(8, G, jnp.int32)

    def remove(requests, began):
        for row in range(8):
            if began[row]:
                began_as[row] = offered[row]
        return [r for r in requests if r not in [offered[row] for row in range(8) if began[row]]]

    def emit(tokens, length, finished):
        for row in range(8):
            if began_as[row] is not None:
                answers[began_as[row]] += tokens[row, : int(length[row])].tolist()

    names = {"jax_sa": jax_sa, "jnp": jnp, "model": packed_model.model, "params": PARAMS}
    names |= {"choose": choose, "remove": remove, "emit": emit, "requests": list(range(9))}
    names["cache"] = packed_model.row_cache(8, CAPACITY)
    exec(textwrap.dedent(code), names)
    assert list(answers.values()) == all_greedy(PROMPTS, LENGTHS, jnp.full(9, G, jnp.int32), (2,))


ONES = jnp.ones(B, jnp.int32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((PROMPTS[:3], ONES, ONES), ValueError, r"prompts: expected int32\[2, 24\], got .*\[3, 24"),
        ((PROMPTS[:B], ONES[:1], ONES), ValueError, r"prompt_lengths: expected int32\[2,\]"),
        ((PROMPTS[:B], ONES, [1, 1]), TypeError, r"limits: expected int32\[2,\], got list"),
        ((PROMPTS[:B], ONES * 25, ONES), ValueError, "1 to 24 tokens, got 25 in prompt 0"),
        ((PROMPTS[:B], ONES, 0 * ONES), ValueError, "limits: expected at least 1 new token, got 0"),
        ((PROMPTS[:B], ONES * 9, ONES * 40), ValueError, "fit the 48 tokens of .* got 9 . 40 in"),
    ],
)
def test_errors_of_admit(arguments, error, message):
    with pytest.raises(error, match=message):
        DECODER.admit(init(), *arguments)


def test_errors_of_release():
    with pytest.raises(TypeError, match=r"mask: expected bool\[2,\], got int32"):
        DECODER.release(init(), ONES)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rows": 3}, ValueError, "state: expected 3 slots, got 2|block_table"),
        ({"rows": 17}, ValueError, "budget: expected at least 17"),
        ({"max_prompt": 0}, ValueError, "max_prompt: expected an int"),
        ({"state": jax_sa.init(3, 9)}, ValueError, "state: expected 2 slots, got 3"),
        ({"sampling": 1.0}, TypeError, "sampling: expected a jax_sa.Sampling"),
    ],
)
def test_errors_of_init(options, error, message):
    with pytest.raises(error, match=message):
        init(**options)


def test_errors_of_step():
    with pytest.raises(ValueError, match=r"costs: expected float32\["):
        DECODER.step(PARAMS, init(), jnp.ones(1, jnp.float32))
