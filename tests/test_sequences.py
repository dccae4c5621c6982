"""Any sequence of calls leaves what the reference holds."""

import hypothesis
import hypothesis.strategies as st
import jax
from calls import (
    assert_draft_equals,
    assert_drafts_nothing,
    copy_slots,
    extend,
    extend_lookup,
    lookup,
    reference_of,
    reset,
)
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from inspection import assert_slot_equals

import jax_sa
from jax_sa import Status

NUM_SLOTS, CAPACITY, WIDTH = 3, 24, 4

slots = st.integers(0, NUM_SLOTS - 1)
rows = st.lists(st.lists(st.integers(0, 2), max_size=WIDTH), min_size=NUM_SLOTS, max_size=NUM_SLOTS)
options = st.sampled_from(
    [
        {},
        {"occurrence": "first", "max_match": 3},
        {"min_match": 2, "draft_factor": 0.5},
        {"periodic": False},
    ]
)


class AnySequence(RuleBasedStateMachine):
    @initialize()
    def start(self):
        self.state = jax_sa.init(NUM_SLOTS, CAPACITY)
        self.automata = [reference_of([], CAPACITY) for _ in range(NUM_SLOTS)]
        self.status = [Status(0)] * NUM_SLOTS

    def append(self, slot, block):
        for token in block:
            if len(self.automata[slot].text) == CAPACITY:
                self.status[slot] |= Status.FULL
                return
            self.automata[slot].append(token)

    def assert_drafts(self, draft, row, slot, **options):
        if self.status[slot] & (Status.FULL | Status.OUT_OF_RANGE):
            assert_drafts_nothing(draft, row)
        else:
            assert_draft_equals(draft, row, self.automata[slot], 3, **options)

    @rule(rows=rows)
    def extend(self, rows):
        rows = [row + [0] * (WIDTH - len(row)) for row in rows], [len(row) for row in rows]
        self.state = extend(self.state, rows[0], lengths=rows[1])
        for slot in range(NUM_SLOTS):
            self.append(slot, rows[0][slot][: rows[1][slot]])

    @rule(slot=slots, length=st.sampled_from([-1, WIDTH + 1, 2**31 - 1]))
    def extend_by_a_length_out_of_range(self, slot, length):
        self.state = extend(self.state, [[1] * WIDTH], [slot], lengths=[length])
        self.status[slot] |= Status.OUT_OF_RANGE

    @rule(rows=rows, order=st.permutations(range(NUM_SLOTS)), options=options)
    def extend_lookup(self, rows, order, options):
        padded, lengths = (
            [row + [0] * (WIDTH - len(row)) for row in rows],
            [len(row) for row in rows],
        )
        self.state, draft = extend_lookup(
            self.state, padded, order, lengths=lengths, max_draft=3, **options
        )
        for row, slot in enumerate(order):
            self.append(slot, rows[row])
            self.assert_drafts(draft, row, slot, **options)

    @rule(options=options)
    def lookup(self, options):
        draft = lookup(self.state, max_draft=3, **options)
        for slot in range(NUM_SLOTS):
            self.assert_drafts(draft, slot, slot, **options)

    @rule(slot=slots)
    def reset(self, slot):
        self.state = reset(self.state, [slot])
        self.automata[slot] = reference_of([], CAPACITY)
        self.status[slot] = Status(0)

    @rule(source=slots, destination=slots)
    def copy(self, source, destination):
        self.state = copy_slots(self.state, [source], [destination])
        self.automata[destination] = reference_of(self.automata[source].text, CAPACITY)
        self.status[destination] = self.status[source]

    @rule(slot=slots, text=st.lists(st.integers(0, 2), max_size=CAPACITY), seed=st.integers(0, 9))
    def insert(self, slot, text, seed):
        built = jax_sa.build_on_host(text, CAPACITY, seed=seed)
        self.state = jax_sa.insert(self.state, built, slot)
        self.automata[slot] = reference_of(text, CAPACITY)
        self.status[slot] = Status(0)

    @invariant()
    def valid(self):
        assert jax_sa.validate(self.state).tolist() == [0] * NUM_SLOTS

    @invariant()
    def same_automata(self):
        state = jax.device_get(self.state)
        for slot in range(NUM_SLOTS):
            assert_slot_equals(state, slot, self.automata[slot], status=self.status[slot])


TestAnySequence = AnySequence.TestCase
TestAnySequence.settings = hypothesis.settings(
    max_examples=60, stateful_step_count=25, deadline=None, derandomize=True
)
