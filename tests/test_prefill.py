"""Rows of a whole prompt. On a GPU they are built in parallel, on a CPU token by token; what they
leave behind is the same. `test_parallel_build.py` tests the parallel way without a GPU.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import texts
from calls import assert_draft_equals, extend, extend_lookup, reference_of
from inspection import assert_slot_equals

import jax_sa
from jax_sa import Status

LONG = {
    "one-token": [7] * 1500,
    "random-2": texts.random_text(2, 2000),
    "random-40": texts.random_text(40, 2000),
    "random-128256": texts.random_text(128_256, 900),
    "period-2": texts.periodic_text(2, 1200),
    "fibonacci": texts.fibonacci_word(1597),
    "most-states": texts.most_states(1200),
    "most-edges": texts.most_edges(1200),
    "run-break-run": [5] * 700 + [6] + [5] * 400 + [6, 5, 5, 5, 7],
    "edge-tokens": texts.edge_tokens(900),
    "source-code": texts.source_code(4000),
}


@pytest.mark.parametrize("name", LONG)
def test_prompt_then_tokens(name):
    text = LONG[name]
    state = jax_sa.init(2, len(text) + 20, seed=5)
    state = extend(state, [text], [1])
    assert_slot_equals(state, 1, reference_of(text, len(text) + 20))
    assert jax_sa.validate(state).tolist() == [0, 0]
    more = [*text[:12], 9]
    state, draft = extend_lookup(state, [more], [1], max_draft=6)
    automaton = reference_of(text + more, len(text) + 20)
    assert_slot_equals(state, 1, automaton)
    assert_draft_equals(draft, 0, automaton, 6)


@pytest.mark.parametrize("name", LONG)
def test_long_chunk_onto_a_text(name):
    text = LONG[name]
    state = jax_sa.init(1, len(text))
    state = extend(state, [text[:100]])
    state, draft = extend_lookup(state, [text[100:]], max_draft=6)
    automaton = reference_of(text)
    assert_slot_equals(state, 0, automaton)
    assert_draft_equals(draft, 0, automaton, 6)
    assert jax_sa.validate(state).tolist() == [0]


def test_prompt_then_tree():
    text = texts.source_code(700)
    state, _ = jax_sa.extend_lookup_tree(
        jax_sa.init(1, 700), jnp.array([text], jnp.int32), jnp.array([700], jnp.int32), max_nodes=8
    )
    assert_slot_equals(state, 0, reference_of(text))


def test_rows_of_all_kinds():
    """Long, short, empty, too long, out of range, skipped, and twice the same, in one call."""
    capacity = 1000
    long = texts.random_text(30, 1000)
    rows = [long[:900], long[:3], [], long, long[:700], long[:5], long[:800], long[:650]]
    slots = [6, 2, 0, 3, 4, -1, 6, 5]
    lengths = [900, 3, 0, 1000, -1, 5, 800, 650]
    state = jax_sa.init(7, capacity, seed=9)
    state = extend(state, [[1, 2, 3]] * 7)
    state, draft = extend_lookup(state, rows, slots, lengths, max_draft=4)
    added = {6: long[:900], 2: long[:3], 3: long[:997], 5: long[:650]}
    status = {6: Status.CONFLICT, 3: Status.FULL, 4: Status.OUT_OF_RANGE}
    for slot in range(7):
        automaton = reference_of([1, 2, 3, *added.get(slot, [])], capacity)
        assert_slot_equals(state, slot, automaton, status=status.get(slot, 0))
    assert not jax_sa.validate(state).any()
    for row, slot in enumerate(slots):
        if slot in (2, 5, 0) or row == 0:
            automaton = reference_of([1, 2, 3, *added.get(slot, [])], capacity)
            assert_draft_equals(draft, row, automaton, 4)
        else:
            assert int(draft.length[row]) == 0


def test_a_full_slot_stays_full():
    text = texts.random_text(5, 700)
    state = extend(jax_sa.init(1, 700), [text])
    assert state.status.tolist() == [0]
    state = extend(state, [text])
    assert_slot_equals(state, 0, reference_of(text), status=Status.FULL)


def test_prompts_in_a_compiled_loop():
    """In one program: prompts, then steps, then the next prompts over the first."""
    block = np.array([texts.random_text(20, 800, seed=i) for i in range(6)], np.int32)
    blocks = jnp.asarray(block.reshape(2, 3, 800))
    slots = jnp.arange(3, dtype=jnp.int32)

    def body(state, tokens):
        state = jax_sa.reset(state, slots)
        state = jax_sa.extend(state, tokens, jnp.array([800, 640, 10], jnp.int32))
        state = jax_sa.extend(state, tokens[:, :2], jnp.full(3, 2, jnp.int32))
        return state, state.length

    state, lengths = jax.jit(lambda state: jax.lax.scan(body, state, blocks), donate_argnums=0)(
        jax_sa.init(3, 1000)
    )
    assert lengths.tolist() == [[802, 642, 12]] * 2
    for slot, length in enumerate((800, 640, 10)):
        text = block[3 + slot].tolist()
        assert_slot_equals(state, slot, reference_of(text[:length] + text[:2], 1000))


def test_vmapped():
    blocks = np.array([texts.random_text(7, 600, seed=i) for i in range(6)], np.int32)
    lengths = np.array([[600, 599], [300, 0], [256, 10]], np.int32)
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[jax_sa.init(2, 650)] * 3)
    states = jax.jit(jax.vmap(jax_sa.extend), donate_argnums=0)(
        states, jnp.asarray(blocks.reshape(3, 2, 600)), jnp.asarray(lengths)
    )
    for element in range(3):
        state = jax.tree.map(lambda leaf, element=element: leaf[element], states)
        for slot in range(2):
            text = blocks[2 * element + slot, : lengths[element, slot]].tolist()
            assert_slot_equals(state, slot, reference_of(text, 650))


def test_one_program_for_several_states():
    """On a GPU one CUDA graph, whose kernels get other buffers from call to call."""
    blocks = np.array([texts.random_text(9, 700, seed=i) for i in range(6)], np.int32)
    states = [jax_sa.init(1, 720, seed=i) for i in range(3)]
    lengths = jnp.full(1, 350, jnp.int32)
    program = jax.jit(jax_sa.extend, donate_argnums=0).lower(
        states[0], jnp.zeros((1, 700), jnp.int32), lengths
    )
    program = program.compile(compiler_options={"xla_gpu_graph_min_graph_size": 1})
    for call in range(6):
        block = jnp.asarray(blocks[call : call + 1])
        states[call % 3] = program(states[call % 3], block, lengths)
    for slot, state in enumerate(states):
        text = [*blocks[slot, :350].tolist(), *blocks[slot + 3, :350].tolist()]
        assert_slot_equals(state, 0, reference_of(text, 720))


@pytest.mark.parametrize("rows, length", [(1, 32_768), (1, 100_000), (40, 8_192)])
@pytest.mark.parametrize("kind", ["two", "many", "run", "pairs"])
def test_large(rows, length, kind):
    """As built on the host, number for number, up to the places of edges."""
    random = np.random.default_rng(length)
    block = random.integers(0, {"two": 2, "many": 5_000}.get(kind, 1), (rows, length), np.int32)
    if kind == "pairs":
        block[:, ::2] = 1
    block[:, -1] = 3
    lengths = np.full(rows, length, np.int32)
    lengths[rows // 2 + 1 :] -= 1_000
    state = jax_sa.init(rows, length)
    state = jax.jit(jax_sa.extend, donate_argnums=0)(
        state, jnp.asarray(block), jnp.asarray(lengths)
    )
    for slot in {0, rows // 2, rows - 1}:
        built = jax_sa.build_on_host(block[slot, : lengths[slot]], length)
        for name in ("length", "status", "num_clones", "suffixes", "tokens", "nodes", "clones"):
            np.testing.assert_array_equal(
                getattr(state, name)[slot], getattr(built, name)[0], err_msg=name
            )
    assert not jax_sa.validate(state).any()
