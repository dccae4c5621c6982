"""read_tokens: parts of texts, and the fill outside of them."""

import functools

import jax
import numpy as np
import pytest
import texts
from calls import extend, int32, reset

import jax_sa

INT32 = np.iinfo(np.int32)
ROWS = [texts.random_text(9, n, seed=n) for n in (0, 1, 40, 64)]


@pytest.fixture(scope="module")
def state():
    return extend(jax_sa.init(4, 64), ROWS)


@functools.partial(jax.jit, static_argnames="length")
def read(state, starts, slots, *, length):
    return jax_sa.read_tokens(state, starts, length=length, slots=slots)


def expected(text, start, length):
    places = range(start, start + length)
    return [text[i] if 0 <= i < len(text) else jax_sa.DRAFT_FILL for i in places]


@pytest.mark.parametrize("length", [1, 5, 33, 64, 100])
@pytest.mark.parametrize("start", [0, 1, 31, 39, 40, 63, 64, -3, INT32.min, INT32.max])
def test_parts_of_texts(state, start, length):
    got = read(state, int32([start] * 4), None, length=length)
    assert got.tolist() == [expected(text, start, length) for text in ROWS]
    slots = [3, -1, 2, 3, 4, INT32.min, 0]
    starts = [start, 0, 2, 5, 0, 0, 0]
    got = read(state, int32(starts), int32(slots), length=length)
    for row, (slot, begin) in enumerate(zip(slots, starts, strict=True)):
        text = ROWS[slot] if 0 <= slot < 4 else []
        assert got[row].tolist() == expected(text, begin, length)


def test_tokens_of_an_earlier_text_are_not_read():
    state = reset(extend(jax_sa.init(1, 8), [[5, 6, 7]]), [0])
    state = extend(state, [[9]])
    assert jax_sa.read_tokens(state, int32([0]), length=3).tolist() == [[9, 0, 0]]


def test_no_rows(state):
    assert read(state, int32([]), int32([]), length=3).shape == (0, 3)
