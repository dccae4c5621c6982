"""Requests come, are batched in any order, and go, and each has the drafts of its own text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import texts
from calls import assert_draft_equals, assert_drafts_nothing, int32, reference_of
from inspection import assert_slot_equals

import jax_sa
from jax_sa import host_build
from jax_sa import manager as manager_module

CAPACITY, MAX_DRAFT = 64, 4


def new_manager(max_slots=3, max_num_requests=2, **options):
    options = {"max_seq_len": CAPACITY, "max_draft": MAX_DRAFT} | options
    return jax_sa.SuffixAutomatonManager(
        jax_sa.SAConfig(max_slots=max_slots, **options), max_num_requests
    )


def text(seed, length=20):
    return texts.random_text(3, length, seed=seed)


def no_tokens(rows=2):
    return jnp.zeros((rows, 1), jnp.int32), jnp.zeros(rows, jnp.int32)


def test_a_request_has_the_automaton_of_its_tokens():
    manager = new_manager()
    for slot, name in enumerate("abc"):
        assert manager.add_request(name, text(ord(name))) == slot
    for slot, name in enumerate("abc"):
        assert_slot_equals(manager.state, slot, reference_of(text(ord(name)), CAPACITY))
    assert manager.prepare(["c", "a"]).tolist() == [2, 0]
    draft = manager.extend(int32([[1, 2], [0, 9]]), int32([2, 1]))
    assert_draft_equals(draft, 0, reference_of([*text(ord("c")), 1, 2], CAPACITY), MAX_DRAFT)
    assert_draft_equals(draft, 1, reference_of([*text(ord("a")), 0], CAPACITY), MAX_DRAFT)


def test_one_program_puts_requests_into_slots():
    manager = new_manager(max_slots=4, max_seq_len=61)
    before = manager_module._insert._cache_size()
    for name in "abcd":
        manager.add_request(name, text(0))
    assert manager_module._insert._cache_size() == before + 1


@pytest.mark.parametrize("length", [0, 1, 1023, 1024, 1025, 2500])
def test_prompts_longer_than_a_chunk(length):
    manager = new_manager(max_seq_len=2500)
    manager.add_request(0, np.asarray(text(1, length), np.int64))
    assert_slot_equals(manager.state, 0, reference_of(text(1, length), 2500))


def test_a_batch_is_padded():
    manager = new_manager(max_num_requests=3)
    assert manager.prepare([]).tolist() == [-1, -1, -1]
    manager.add_request("a", text(0))
    assert manager.prepare(["a"]).tolist() == [0, -1, -1]
    draft = manager.extend(int32([[1], [1], [1]]), int32([1, 1, 1]))
    assert_draft_equals(draft, 0, reference_of([*text(0), 1], CAPACITY), MAX_DRAFT)
    assert_drafts_nothing(draft, 1)
    assert manager.state.length.tolist() == [21, 0, 0]


def test_a_removed_request_is_skipped_and_its_slot_used_again():
    manager = new_manager(max_slots=2)
    manager.add_request("a", text(0, 60))
    manager.add_request("b", text(1))
    assert manager.num_free_slots == 0
    manager.prepare(["a", "b"])
    manager.extend(int32([[1] * 9, [1] * 9]), int32([9, 3]))  # "a" is full
    assert manager.state.status.tolist() == [jax_sa.Status.FULL, 0]
    manager.remove_request("a")
    assert manager.num_free_slots == 1
    # The batch still has two rows; that of "a" does nothing, also once its slot is another's.
    manager.add_request("c", text(2))
    draft = manager.extend(int32([[5], [2]]), int32([1, 1]))
    assert_drafts_nothing(draft, 0)
    assert_draft_equals(draft, 1, reference_of([*text(1), 1, 1, 1, 2], CAPACITY), MAX_DRAFT)
    assert_slot_equals(manager.state, 0, reference_of(text(2), CAPACITY))
    assert manager.prepare(["b", "c"]).tolist() == [1, 0]
    # An id may come back, and means its new slot.
    manager.remove_request("b")
    manager.add_request("b", text(3))
    draft = manager.lookup()
    assert_drafts_nothing(draft, 0)
    manager.prepare(["b", "c"])
    draft = manager.lookup()
    assert_draft_equals(draft, 0, reference_of(text(3), CAPACITY), MAX_DRAFT)
    assert_draft_equals(draft, 1, reference_of(text(2), CAPACITY), MAX_DRAFT)


def test_requests_that_come_and_go():
    """Random traffic against one reference automaton per request."""
    manager = new_manager(max_slots=5, max_num_requests=3)
    random = np.random.default_rng(0)
    automata = {}
    for step in range(120):
        if manager.num_free_slots and random.random() < 0.4:
            tokens = text(step, int(random.integers(0, 30)))
            manager.add_request(step, tokens)
            automata[step] = reference_of(tokens, CAPACITY)
        if automata and random.random() < 0.2:
            leaving = list(automata)[random.integers(len(automata))]
            manager.remove_request(leaving)
            del automata[leaving]
        batch = random.permutation(list(automata))[: random.integers(0, 4)].tolist()
        manager.prepare(batch)
        lengths = random.integers(0, 3, 3)
        tokens = random.integers(0, 3, (3, 2))
        draft = manager.extend(int32(tokens), int32(lengths))
        for row, request in enumerate(batch):
            automaton = automata[request]
            room = CAPACITY - len(automaton.text)
            for token in tokens[row, : lengths[row]].tolist()[:room]:
                automaton.append(token)
            if lengths[row] > room:
                manager.remove_request(request)
                del automata[request]
            else:
                assert_draft_equals(draft, row, automaton, MAX_DRAFT)
        for row in range(len(batch), 3):
            assert_drafts_nothing(draft, row)
    assert len(automata) == 5 - manager.num_free_slots


def test_neural_drafts_are_merged_by_the_threshold():
    manager = new_manager(threshold=3)
    manager.add_request("long", [1, 2, 3, 4, 1, 2])
    manager.add_request("short", [1, 2, 3, 4, 9, 9, 1])
    manager.prepare(["long", "short"])
    neural = int32([[7, 7], [8, 8]])
    draft = manager.extend(int32([[3], [2]]), int32([1, 1]), neural)
    assert draft.tokens.tolist() == [[4, 1, 2, 3], [8, 8, 0, 0]]
    assert draft.length.tolist() == [4, 2] and draft.match_length.tolist() == [3, 0]
    jax.tree.map(np.testing.assert_array_equal, manager.lookup(neural), draft)
    assert manager.lookup().match_length.tolist() == [3, 2]


def test_one_program_serves_every_batch():
    manager = new_manager(max_slots=4, max_num_requests=3)
    for name in "abcd":
        manager.add_request(name, text(ord(name)))
    manager.prepare(["a"])
    manager.extend(*no_tokens(3))
    manager.lookup()
    names = ("_insert", "_lookup", "_extend_lookup")
    programs = [host_build._extend, *(getattr(manager_module, name) for name in names)]
    compiled = [program._cache_size() for program in programs]
    for batch in ["abc", "d", "", "cb"]:
        manager.prepare(list(batch))
        manager.lookup()
        manager.extend(*no_tokens(3))
    manager.remove_request("a")
    manager.add_request("e", text(9, 3))
    assert [program._cache_size() for program in programs] == compiled


def test_the_state_never_moves():
    manager = new_manager()
    where = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(manager.state)]
    manager.add_request("a", text(0))
    manager.prepare(["a"])
    manager.extend(*no_tokens())
    manager.remove_request("a")
    manager.add_request("b", text(1))
    assert [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(manager.state)] == where


def test_an_engines_own_step():
    manager = new_manager()
    manager.add_request("a", [1, 2, 3])
    slots = manager.prepare(["a"])
    step = jax.jit(jax_sa.extend, donate_argnames="state")
    manager.state = step(manager.state, int32([[1, 2], [5, 5]]), int32([2, 2]), slots=slots)
    draft = manager.lookup()
    assert_draft_equals(draft, 0, reference_of([1, 2, 3, 1, 2], CAPACITY), MAX_DRAFT)
    assert manager.state.length.tolist() == [5, 0, 0]


def test_state_size_is_that_of_a_slot():
    manager = new_manager(max_slots=3)
    leaves = jax.tree.leaves(manager.state)
    assert 3 * manager.state_size == sum(leaf.nbytes for leaf in leaves)


def test_options_reach_the_lookup():
    manager = new_manager(min_match=2)
    manager.add_request("a", [1, 2, 3])
    manager.prepare(["a"])
    draft = manager.extend(int32([[1], [0]]), int32([1, 0]))
    assert draft.length.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_seq_len": 0}, ValueError, "max_seq_len: expected an int"),
        ({"max_slots": 0}, ValueError, "max_slots: expected an int"),
        ({"threshold": 0}, ValueError, "threshold: expected an int"),
        ({"max_draft": True}, TypeError, "max_draft: expected an int"),
        ({"periodic": 1}, TypeError, "periodic: expected a bool"),
    ],
)
def test_config_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        jax_sa.SAConfig(**{"max_seq_len": 8, "max_slots": 2} | arguments)


def test_positional_config():
    config = jax_sa.SAConfig(8, 2, 5)
    assert (config.max_seq_len, config.max_slots, config.threshold) == (8, 2, 5)


def test_errors():
    config = jax_sa.SAConfig(8, 2)
    with pytest.raises(TypeError, match="config: expected a jax_sa.SAConfig, got dict"):
        jax_sa.SuffixAutomatonManager({}, 2)
    with pytest.raises(ValueError, match="max_num_requests: expected an int .*got 0"):
        jax_sa.SuffixAutomatonManager(config, 0)
    manager = jax_sa.SuffixAutomatonManager(config, 1)
    manager.add_request("a", [1, 2])
    with pytest.raises(ValueError, match="request_id: expected a new one, got 'a'"):
        manager.add_request("a", [1])
    with pytest.raises(ValueError, match="tokens: expected at most 8, got 9"):
        manager.add_request("b", [1] * 9)
    with pytest.raises(TypeError, match="tokens: expected a sequence of ints, got float64"):
        manager.add_request("b", [1.5])
    with pytest.raises(TypeError, match=r"tokens: expected a sequence of ints, got int64\[1, 1\]"):
        manager.add_request("b", [[1]])
    with pytest.raises(ValueError, match=r"tokens: expected int32s, got 1\.\.2147483648"):
        manager.add_request("b", [1, 2**31])
    assert manager.num_free_slots == 1  # a refused request takes no slot
    manager.add_request("b", [])
    with pytest.raises(ValueError, match="expected a free slot for 'c', got 2 requests in 2 slots"):
        manager.add_request("c", [1])
    with pytest.raises(ValueError, match="request_ids: expected at most 1, got 2"):
        manager.prepare(["a", "b"])
    with pytest.raises(ValueError, match="request_id: expected one that was added, got 'c'"):
        manager.prepare(["c"])
    with pytest.raises(ValueError, match="request_id: expected one that was added, got 'c'"):
        manager.remove_request("c")
    with pytest.raises(ValueError, match=r"tokens: expected int32\[1, T\], got int32\[2, 1\]"):
        manager.extend(*no_tokens(2))
    with pytest.raises(TypeError, match="lengths: expected int32.*got int"):
        manager.extend(jnp.zeros((1, 1), jnp.int32), 1)
    manager = jax_sa.SuffixAutomatonManager(config, 2)
    manager.add_request("a", [1])
    with pytest.raises(ValueError, match="request_ids: expected each id once, got 'a' twice"):
        manager.prepare(["a", "a"])
