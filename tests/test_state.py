"""The state as plain data: sizes, saving, sharding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import texts
from calls import assert_states_equal, extend, lookup, reference_of
from inspection import assert_slot_equals, with_arrays
from jax.sharding import NamedSharding, PartitionSpec

import jax_sa
from jax_sa.state import pack, unpack


@pytest.mark.parametrize("capacity", [1, 2, 3, 100, 8_192, 32_768, 131_072, 262_144])
def test_get_state_size_is_the_bytes_of_a_slot(capacity):
    state = jax.eval_shape(functools.partial(jax_sa.init, 3, capacity))
    got = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert 3 * jax_sa.get_state_size(capacity) == got


@pytest.mark.parametrize("capacity", [8_192, 32_768, 131_072, 262_144])
def test_bytes_per_token(capacity):
    assert jax_sa.get_state_size(capacity) <= 84 * capacity


def test_init_is_zeros():
    state = jax_sa.init(2, 10)
    assert (state.num_slots, state.max_seq_len) == (2, 10)
    assert all(leaf.dtype == jnp.int32 and not leaf.any() for leaf in jax.tree.leaves(state))
    seeded = jax_sa.init(2, 10, seed=-3)
    assert_states_equal(seeded, with_arrays(state, seed=np.full(2, -3, np.int32)))
    assert_states_equal(jax.jit(functools.partial(jax_sa.init, 2, 10))(), state)


def test_a_state_is_three_arrays():
    """Each costs a call from Python about a microsecond. Slots come first in all of them."""
    leaves = jax.tree.leaves(jax_sa.init(5, 13))
    assert [leaf.shape[0] for leaf in leaves] == [5, 5, 5]


@pytest.mark.parametrize("capacity", [1, 2, 3, 4, 5, 101])
def test_the_arrays_of_a_state_stand_apart(capacity):
    """What is written to one is read there and nowhere else, and every slot's edges are aligned."""
    state = jax.tree.map(np.array, jax_sa.init(2, capacity))
    assert state.index.shape[1] % 4 == 0
    for number, array in enumerate(unpack(state).values()):
        array[...] = 1 + number
    for number, array in enumerate(unpack(jax.tree.map(jnp.asarray, state)).values()):
        assert array.shape[0] == 2 and np.all(array == 1 + number)
    assert_states_equal(pack(unpack(state)), state)


def test_a_saved_state_goes_on(tmp_path):
    text = texts.SMALL["source-code"]
    state = extend(jax_sa.init(1, len(text)), [text[:200]])
    np.savez(tmp_path / "state.npz", **dataclasses.asdict(state))
    with np.load(tmp_path / "state.npz") as file:
        loaded = jax_sa.State(**{name: jnp.asarray(file[name]) for name in file.files})
    loaded = extend(loaded, [text[200:]])
    assert_slot_equals(loaded, 0, reference_of(text))


def test_slots_over_devices():
    """shard_map over the slot axis: no collectives, and the same automata."""
    devices = jax.devices()  # four virtual ones on the CPU, what there is on a GPU
    mesh = jax.make_mesh((len(devices),), ("slots",), devices=devices)
    by_slot = NamedSharding(mesh, PartitionSpec("slots"))
    num_slots = 2 * len(devices)
    text = np.array([texts.random_text(3, 40, seed=s) for s in range(num_slots)], np.int32)

    @functools.partial(jax.jit, donate_argnums=0)
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=PartitionSpec("slots"), out_specs=PartitionSpec("slots")
    )
    def replay(state, tokens):
        def step(i, carry):
            state, _ = carry
            block = jax.lax.dynamic_slice_in_dim(tokens, 4 * i, 4, axis=1)
            lengths = jnp.full_like(state.length, 4)
            return jax_sa.extend_lookup(state, block, lengths, max_draft=5)

        return jax.lax.fori_loop(0, 10, step, (state, jax_sa.lookup(state, max_draft=5)))

    state = jax.device_put(jax_sa.init(num_slots, 40), by_slot)
    tokens = jax.device_put(jnp.asarray(text), by_slot)

    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=PartitionSpec("slots"), out_specs=PartitionSpec("slots")
    )
    def inspect(state):
        limited = jax_sa.lookup(state, max_draft=5, limits=jnp.full_like(state.length, 2))
        read = jax_sa.read_tokens(state, jnp.zeros_like(state.length), length=40)
        return jax_sa.validate(state), limited, read

    compiled = replay.lower(state, tokens).compile().as_text()
    assert not any(op in compiled for op in ("all-gather", "all-reduce", "all-to-all"))
    state, draft = replay(state, tokens)
    assert state.edges.sharding.is_equivalent_to(by_slot, 3)
    local = jax.device_get(state)
    for slot in range(num_slots):
        assert_slot_equals(local, slot, reference_of(text[slot].tolist()))
    whole = lookup(jax.tree.map(jnp.asarray, local), max_draft=5)
    assert_states_equal(jax.device_get(draft), jax.device_get(whole))
    invalid, limited, read = inspect(state)
    assert not np.any(invalid)
    np.testing.assert_array_equal(limited.length, np.minimum(whole.length, 2))
    np.testing.assert_array_equal(read, text)
