"""Long rows built in parallel, as a GPU does it, without a GPU.

`ffi/parallel_build.h` is one source in terms of phases whose elements are independent. Here they
run in random orders, compiled beside the library: the automaton must be the one that appending
token by token leaves behind, number for number, up to the places of edges in their table.
"""

import ctypes

import cpp_library
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import texts
from calls import reference_of
from inspection import assert_slot_equals

import jax_sa
from jax_sa import Status, _prefill


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return cpp_library.build("shuffled_grid", tmp_path_factory.mktemp("grid"))


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


class Slots:
    """A state in numpy arrays, and the texts that its slots should hold."""

    def __init__(self, library, num_slots, capacity, seed=0):
        self.library = library
        self.state = jax.tree.map(np.array, jax_sa.init(num_slots, capacity, seed=seed))
        self.texts = [[] for _ in range(num_slots)]

    def extend(
        self,
        rows,
        slots=None,
        lengths=None,
        build_cost=0,
        elements_per_token=2**20,
        room=None,
        seed=0,
    ):
        """Calls the op; returns how many rows were built."""
        capacity = self.state.max_seq_len
        width = max(map(len, rows))
        block = np.array([[*row, *[-7] * (width - len(row))] for row in rows], np.int32)
        lengths = np.array([len(row) for row in rows] if lengths is None else lengths, np.int32)
        slots = np.array(range(len(rows)) if slots is None else slots, np.int32)
        (num_lines, _), header = _prefill.workspace_shapes(len(rows), width, capacity)
        room = len(rows) * (capacity + 1) if room is None else room
        lines, header = np.full((num_lines, room), -9, np.int32), np.full(header, -9, np.int32)
        leaves = [pointer(leaf) for leaf in jax.tree.leaves(self.state)]
        for row, length, slot in zip(rows, lengths, slots, strict=True):
            if slot >= 0 and 0 < length <= width:
                self.texts[slot] = (self.texts[slot] + list(row[:length]))[:capacity]
        return self.library.extend(
            *((ctypes.c_void_p * len(leaves))(*leaves), len(self.texts), capacity),
            *(self.state.index.shape[1], pointer(block), pointer(lengths), pointer(slots)),
            *(len(rows), width, pointer(lines), room, pointer(header)),
            *(build_cost, elements_per_token, seed),
        )

    def check(self, slot, status=0):
        text = self.texts[slot]
        assert_slot_equals(
            self.state, slot, reference_of(text, self.state.max_seq_len), status=status
        )

    def validate(self):
        state = jax.tree.map(jnp.asarray, self.state)
        assert not jax_sa.validate(state).any()


@pytest.mark.parametrize("name", texts.SMALL)
def test_whole_text(library, name):
    text = texts.SMALL[name]
    slots = Slots(library, 1, len(text) + 3)
    assert slots.extend([text]) == 1
    slots.check(0)
    slots.validate()
    assert slots.extend([text[:3]], build_cost=1000) == 0  # extends on, token by token
    slots.check(0)


@pytest.mark.parametrize("seed", range(20))
def test_random_texts(library, seed):
    """Many short ones, each built from the beginning or on what is there."""
    random = np.random.default_rng(seed)
    for _ in range(40):
        vocabulary = random.choice([1, 2, 2, 3, 5, 40])
        length = int(random.integers(2, 90))
        text = random.integers(0, vocabulary, length).tolist()
        if random.random() < 0.3:
            text = (text[: random.integers(1, 5)] * length)[:length]
        slots = Slots(library, 1, 90, seed=int(random.integers(1000)))
        cut = int(random.integers(0, length))
        if cut:
            slots.extend([text[:cut]], build_cost=1000 * int(random.integers(2)))
        assert slots.extend([text[cut:]], seed=seed) == 1
        slots.check(0)
        slots.validate()


def test_rows_of_a_call(library):
    """Long and short, none, beyond the room, out of range, skipped, and a slot named twice."""
    text = texts.random_text(4, 100)
    slots = Slots(library, 6, 100)
    slots.extend([text[:40]] * 6)
    rows = [text[:50], text[:3], [], text, text[:20], text[:6], text[:9], text[:60]]
    lengths = [50, 3, 0, 100, -1, 6, 9, 60]
    ids = [5, 2, 0, 3, 4, -1, 5, 1]
    before = [list(text) for text in slots.texts]
    assert slots.extend(rows, ids, lengths) == 4
    slots.texts[5] = before[5] + text[:50]
    status = {5: Status.CONFLICT, 3: Status.FULL, 4: Status.OUT_OF_RANGE}
    for slot in range(6):
        slots.check(slot, status.get(slot, 0))
    slots.validate()


def test_rows_that_do_not_fit_together_are_built_in_turn(library):
    slots = Slots(library, 5, 50)
    rows = [texts.random_text(3, length, seed=length) for length in (50, 30, 10, 45, 22)]
    assert slots.extend(rows, room=55) == 5
    assert slots.extend(rows[:2], [4, 2], room=55) == 2
    for slot in range(5):
        slots.check(slot, Status.FULL if slot == 4 else 0)
    slots.validate()


def test_a_text_larger_than_the_room_is_not_built(library):
    slots = Slots(library, 2, 60)
    text = texts.random_text(3, 60)
    slots.extend([text[:55]])
    assert slots.extend([text[:5], text[:50]], room=51) == 1
    for slot in range(2):
        slots.check(slot)


@pytest.mark.parametrize(
    "lengths, build_cost, elements_per_token, built",
    [
        ([90, 10, 10, 10], 40, 3, 1),  # 40 + 91 / 3 + 10; all: 40 + 124 / 3
        ([90, 10, 10, 10], 40, 4, 4),  # 40 + 124 / 4; the longest alone: 40 + 91 / 4 + 10
        ([90, 80], 85, 1000, 2),
        ([90, 80], 90, 1000, 0),
        ([60, 60, 60], 60, 1000, 0),
        ([60, 60, 60], 59, 1000, 3),
        ([60, 60, 60], 59, 100, 0),
        ([0, 0], 0, 1000, 0),
    ],
)
def test_what_costs_least_is_done(library, lengths, build_cost, elements_per_token, built):
    slots = Slots(library, len(lengths), 100)
    rows = [texts.random_text(3, length) for length in lengths]
    cost = {"build_cost": build_cost, "elements_per_token": elements_per_token}
    assert slots.extend(rows, **cost) == built
    for slot in range(len(lengths)):
        slots.check(slot)
