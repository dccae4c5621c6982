"""The state is updated in place: in what XLA compiles, and where the bytes are."""

import jax
import jax.numpy as jnp
import pytest
from programs import (
    CAPACITY,
    MAX_DRAFT,
    POOL_PROGRAMS,
    SLOTS,
    WITH_INDEX,
    assert_in_place,
    assert_pool_in_place,
    compile_insert,
    compile_pool_program,
    compile_program,
    compile_prompt,
    decode_step,
    program_id,
    prompt_workspace,
)

import jax_sa


@pytest.mark.parametrize(("program", "index"), WITH_INDEX, ids=program_id)
def test_no_copy_in_the_compiled_program(program, index):
    assert_in_place(compile_program(program, index=index), index)


@pytest.mark.parametrize("program", POOL_PROGRAMS, ids=lambda program: program.__name__)
def test_no_copy_of_a_pool(program):
    assert_pool_in_place(compile_pool_program(program))


@pytest.mark.parametrize("index", ["automaton", "scan"])
def test_no_copy_in_insert(index):
    assert_in_place(compile_insert(index=index), index)


def test_no_copy_in_a_prompt():
    workspace = prompt_workspace() if jax.default_backend() == "gpu" else 0
    assert_in_place(compile_prompt(), workspace=workspace)


def test_the_check_sees_copies():
    def copying(state, targets):
        new = decode_step(state, targets)
        return jax.tree.map(lambda old, new: jnp.where(targets[0, 0] > 0, new, old), state, new)

    with pytest.raises(AssertionError):
        assert_in_place(compile_program(copying))


def test_a_loop_of_donated_steps_never_moves_the_state():
    state = jax_sa.init(4, 1024)
    where = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    step = jax.jit(decode_step, donate_argnums=0)
    for _ in range(5):
        state = step(state, jnp.zeros((4, 1 + MAX_DRAFT), jnp.int32))
    assert [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)] == where


def test_a_state_that_is_not_donated_is_left_as_it_was():
    state = jax_sa.init(2, 16)
    tokens, lengths = jnp.ones((2, 3), jnp.int32), jnp.full(2, 3, jnp.int32)
    extended = jax_sa.extend(state, tokens, lengths)
    assert extended.length.tolist() == [3, 3] and state.length.tolist() == [0, 0]
    assert not any(leaf.any() for leaf in jax.tree.leaves(state))


def test_a_call_without_aliasing_is_refused():
    state = jax_sa.init(2, 16)
    leaves = jax.tree.leaves(state)
    call = jax.ffi.ffi_call("jax_sa_reset", [jax.typeof(leaf) for leaf in leaves])
    with pytest.raises(jax.errors.JaxRuntimeError, match="not updated in place"):
        jax.block_until_ready(call(jnp.zeros(1, jnp.int32), *leaves))


def test_sizes():
    assert SLOTS * jax_sa.get_state_size(CAPACITY) == sum(
        leaf.size * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(jax.eval_shape(lambda: jax_sa.init(SLOTS, CAPACITY)))
    )
