"""Requests come, are batched in any order, and go, and each has the drafts of its own text."""

import concurrent.futures
import functools
import threading
import weakref

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


class Fault(Exception):
    pass


def fail(*args, **kwargs):
    raise Fault


def snapshot(manager):
    """Everything that a method may change."""
    return {
        "free": list(manager._free_slots),
        "slots": dict(manager._slot_of),
        "batch": list(manager._batch.slots),
        "rows": manager._batch.on_device.tolist(),
        "state": jax.tree.map(np.array, manager.state),
    }


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (manager_module, "check_tokens", lambda m: m.add_request("c", text(2))),
        (manager_module, "build_on_host", lambda m: m.add_request("c", text(2))),
        (jax, "device_put", lambda m: m.add_request("c", text(2))),
        (manager_module, "_insert", lambda m: m.add_request("c", text(2))),
        (manager_module.np, "full", lambda m: m.prepare(["b"])),
        (jax, "device_put", lambda m: m.prepare(["b"])),
        (jax, "device_put", lambda m: m.remove_request("a")),
        (manager_module, "check_array", lambda m: m.extend(*no_tokens())),
        (manager_module, "_extend_lookup", lambda m: m.extend(*no_tokens())),
        (manager_module, "_lookup", lambda m: m.lookup()),
    ],
)
def test_a_fault_changes_nothing(owner, name, call, monkeypatch):
    manager = new_manager()
    manager.add_request("a", text(0))
    manager.add_request("b", text(1))
    manager.prepare(["a", "b"])
    before = snapshot(manager)
    with monkeypatch.context() as faulty:
        faulty.setattr(owner, name, fail)
        with pytest.raises(Fault):
            call(manager)
    after = snapshot(manager)
    jax.tree.map(functools.partial(np.testing.assert_array_equal, strict=True), after, before)
    call(manager)  # and works once the fault is gone
    draft = manager.lookup()
    for row, slot in enumerate(manager._batch.slots):
        if slot >= 0:
            expected = reference_of(text(slot), CAPACITY)
            assert_draft_equals(draft, row, expected, MAX_DRAFT)


def test_faults_while_compiling_change_nothing(monkeypatch):
    """The functions as they are, failing inside: nothing is donated before they are compiled."""
    manager = new_manager(max_seq_len=53)
    manager.add_request("a", text(0))
    manager.prepare(["a"])
    before = snapshot(manager)
    with monkeypatch.context() as faulty:
        faulty.setattr(manager_module, "extend_lookup", fail)
        with pytest.raises(Fault):
            manager.extend(*no_tokens())
    jax.tree.map(np.testing.assert_array_equal, snapshot(manager), before)
    manager.extend(*no_tokens())


def test_eight_threads():
    """Seven add, decode nothing, and remove; one decodes two requests of its own meanwhile."""
    manager = new_manager(max_slots=10, max_num_requests=2)
    for name in "ab":
        manager.add_request(name, text(ord(name), 10))
    slots = manager.prepare(["a", "b"]).tolist()
    start = threading.Barrier(8)
    kept = {}

    def come_and_go(thread):
        start.wait()
        for turn in range(12):
            request = (thread, turn)
            slot = manager.add_request(request, text(100 * thread + turn))
            assert slot not in slots
            if turn < 11:
                manager.remove_request(request)
            else:
                kept[request] = slot

    def decode():
        start.wait()
        for turn in range(40):
            assert manager.prepare(["a", "b"] if turn % 2 else ["b", "a"]).shape == (2,)
            manager.extend(int32([[turn % 3], [turn % 3]]), int32([1, 1]))

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        runs = [threads.submit(come_and_go, thread) for thread in range(7)]
        for run in [*runs, threads.submit(decode)]:
            run.result()
    assert manager.num_free_slots == 1 and len(set(kept.values())) == 7
    for (thread, turn), slot in kept.items():
        expected = reference_of(text(100 * thread + turn), CAPACITY)
        assert_slot_equals(manager.state, slot, expected)
    for slot, name in zip(slots, "ab", strict=True):
        written = [*text(ord(name), 10), *(turn % 3 for turn in range(40))]
        assert_slot_equals(manager.state, slot, reference_of(written, CAPACITY))


def test_one_id_from_eight_threads_is_one_request():
    manager = new_manager()
    start = threading.Barrier(8)

    def add(_):
        start.wait()
        try:
            return manager.add_request("a", text(0))
        except ValueError as error:
            assert "expected a new one, got 'a'" in str(error)

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(add, range(8)), key=str) == [0] + [None] * 7
    assert manager.num_free_slots == 2


def test_steps_go_on_while_a_prompt_is_built(monkeypatch):
    manager = new_manager()
    manager.add_request("a", text(0))
    manager.prepare(["a"])
    build, building, go_on = manager_module.build_on_host, threading.Event(), threading.Event()

    def slow(*args, **options):
        building.set()
        assert go_on.wait(60)
        return build(*args, **options)

    monkeypatch.setattr(manager_module, "build_on_host", slow)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        adding = thread.submit(manager.add_request, "b", text(1))
        try:
            assert building.wait(60)
            manager.extend(*no_tokens())
            assert manager.num_free_slots == 2
        finally:
            go_on.set()
        assert adding.result() == 1


def test_shutdown():
    manager = new_manager()
    manager.add_request("a", text(0))
    leaf = weakref.ref(manager.state.tokens)
    manager.shutdown()
    manager.shutdown()
    assert leaf() is None
    for call in (
        lambda: manager.add_request("b", []),
        lambda: manager.prepare([]),
        lambda: manager.lookup(),
        lambda: manager.extend(*no_tokens()),
        lambda: manager.remove_request("a"),
        lambda: manager.num_free_slots,
    ):
        with pytest.raises(RuntimeError, match=r"^manager: expected no call after shutdown\(\)$"):
            call()


def test_a_context_shuts_the_manager_down():
    with pytest.raises(Fault), new_manager() as manager:
        manager.add_request("a", text(0))
        fail()
    with pytest.raises(RuntimeError, match="shutdown"):
        manager.lookup()


def test_default_config():
    config = jax_sa.SAConfig()
    size = config.max_slots * jax_sa.get_state_size(config.max_seq_len)
    assert size / 1e6 == pytest.approx(142.6, rel=0.01)
    assert 256 * jax_sa.get_state_size(262_144) / 1e9 == pytest.approx(4.56, rel=0.01)


def test_numpys_numbers_are_pythons():
    config = jax_sa.SAConfig(np.int32(64), np.uint8(2), jnp.int32(3), max_draft=np.int64(4))
    other = jax_sa.SAConfig(64, 2, 3, max_draft=4)
    assert config == other and hash(config) == hash(other)
    for name in ("max_seq_len", "max_slots", "threshold", "max_draft"):
        assert type(getattr(config, name)) is int


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


@pytest.mark.parametrize("neural", [False, True])
def test_limits_from_the_device_compile_nothing(neural):
    """Each row's draft, neural tokens included, is the one without limits, cut."""
    with jax_sa.SuffixAutomatonManager(jax_sa.SAConfig(64, 2, max_draft=4), 2) as manager:
        for name in "ab":
            manager.add_request(name, [1, 2, 3, 4, 1, 2])
        manager.prepare(["a", "b"])
        drafts = jnp.full((2, 3), 9, jnp.int32) if neural else None
        whole = manager.lookup(drafts)
        tokens, lengths = jnp.full((2, 1), 3, jnp.int32), jnp.zeros(2, jnp.int32)
        for limits in ([0, 4], [3, -1], [2, 99]):
            asked = jnp.asarray(limits, jnp.int32)
            for draft in (
                manager.lookup(drafts, limits=asked),
                manager.extend(tokens, lengths, drafts, limits=asked),
            ):
                expected = np.clip(limits, 0, whole.length)
                assert draft.length.tolist() == expected.tolist()
                for row, length in enumerate(expected):
                    got = draft.tokens[row].tolist()
                    assert got[:length] == whole.tokens[row].tolist()[:length]
                    assert set(got[length:]) <= {jax_sa.DRAFT_FILL}
        with pytest.raises(ValueError, match=r"limits: expected int32\[2,\]"):
            manager.lookup(limits=jnp.ones(3, jnp.int32))


def test_the_seed_reaches_every_slot():
    config = jax_sa.SAConfig(32, 3, seed=-7)
    manager = jax_sa.SuffixAutomatonManager(config, 2)
    slot = manager.add_request("a", [1, 2, 1])
    assert manager.state.seed.tolist() == [-7] * 3
    assert not jax_sa.validate(manager.state).any() and int(manager.state.length[slot]) == 3
    with pytest.raises(ValueError, match="seed: expected an int"):
        jax_sa.SAConfig(seed=2**31)


def test_requests_that_are_removed_go_into_the_pool_of_their_group():
    pool = jax_sa.init_pool(256, num_groups=2)
    config = jax_sa.SAConfig(max_slots=3, max_seq_len=CAPACITY, max_draft=MAX_DRAFT)
    manager = jax_sa.SuffixAutomatonManager(config, 2, pool=pool)
    manager.add_request("a", [1, 2, 3, 4, 5], group=1)
    manager.add_request("b", [6, 7, 8], group=1)
    manager.add_request("c", [9, 9], group=-1)
    manager.prepare(["b"])
    manager.extend(int32([[1, 2], [0, 0]]), int32([2, 0]))
    manager.remove_request("a", start=1)
    assert manager.lookup().tokens[0].tolist() == [3, 4, 5, 0]
    manager.remove_request("b", insert=False)
    manager.remove_request("c")
    assert manager.pool.head.tolist() == [0, 5]
    manager.add_request("d", [3, 4])
    manager.add_request("e", [3, 4], group=1)
    manager.add_request("f", [3, 4], group=-1)
    manager.prepare(["d", "e"])
    assert manager.lookup().source.tolist() == [jax_sa.Source.NONE, jax_sa.Source.POOL]
    manager.prepare(["f"])
    assert manager.lookup().source.tolist() == [jax_sa.Source.NONE] * 2
    manager.remove_request("e", start=99)
    assert manager.pool.head.tolist() == [0, 5] and not manager.pool.status.any()


def test_groups_and_starts_are_checked():
    manager = new_manager()
    with pytest.raises(ValueError, match=r"group: expected an int in \[-1, 0\], got 1"):
        manager.add_request("a", [1], group=1)
    manager.add_request("a", [1])
    for options in ({"start": -1}, {"start": 2**31}):
        with pytest.raises(ValueError, match="start: expected an int"):
            manager.remove_request("a", **options)
    with pytest.raises(TypeError, match="insert: expected a bool"):
        manager.remove_request("a", insert=None)
    with pytest.raises(TypeError, match=r"pool: expected a jax_sa\.Pool"):
        jax_sa.SuffixAutomatonManager(jax_sa.SAConfig(max_slots=1), 1, pool=3)
    manager.remove_request("a")
    assert manager.num_free_slots == 3
