"""What can be known at trace time is an error that names the argument."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_sa


@pytest.fixture(scope="module")
def state():
    return jax_sa.init(2, 8)


TOKENS = jnp.zeros((2, 3), jnp.int32)
LENGTHS = jnp.zeros((2,), jnp.int32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_slots": 0}, ValueError, r"num_slots: expected an int in \[1, .*got 0"),
        ({"num_slots": 1.0}, TypeError, "num_slots: expected an int .*got 1.0"),
        ({"num_slots": True}, TypeError, "num_slots: expected an int .*got True"),
        ({"max_seq_len": -5}, ValueError, "max_seq_len: expected an int .*got -5"),
        ({"max_seq_len": 2**28 + 1}, ValueError, "max_seq_len: expected an int .*got 268435457"),
        ({"max_seq_len": "8"}, TypeError, "max_seq_len: expected an int .*got '8'"),
    ],
)
def test_init(arguments, error, message):
    with pytest.raises(error, match=message):
        jax_sa.init(**{"num_slots": 2, "max_seq_len": 8} | arguments)
    if "max_seq_len" in arguments:
        with pytest.raises(error, match=message):
            jax_sa.get_state_size(arguments["max_seq_len"])


TEXT_ERRORS = [
    ({"tokens": TOKENS[0]}, ValueError, r"tokens: expected int32\[2, T\], got int32\[3\]"),
    ({"tokens": TOKENS[:1]}, ValueError, r"tokens: expected int32\[2, T\], got int32\[1, 3\]"),
    ({"tokens": TOKENS.astype("float32")}, TypeError, r"tokens: expected int32.*got float32"),
    ({"tokens": np.zeros((2, 3), np.int64)}, TypeError, r"tokens: expected int32.*got int64"),
    ({"tokens": [[1], [2]]}, TypeError, "tokens: expected int32.*got list"),
    (
        {"lengths": LENGTHS[:, None]},
        ValueError,
        r"lengths: expected int32\[2,\], got int32\[2, 1\]",
    ),
    ({"lengths": LENGTHS.astype("uint32")}, TypeError, "lengths: expected int32.*got uint32"),
    ({"lengths": 1}, TypeError, "lengths: expected int32.*got int"),
    ({"slots": LENGTHS[None]}, ValueError, r"slots: expected int32\[B,\], got int32\[1, 2\]"),
    ({"slots": jnp.zeros(3, jnp.int32)}, ValueError, r"tokens: expected int32\[3, T\], got"),
    ({"slots": jnp.zeros(2, "int8")}, TypeError, "slots: expected int32.*got int8"),
    ({"state": {}}, TypeError, "state: expected a jax_sa.State or ScanState, got dict"),
]

LOOKUP_ERRORS = [
    ({"max_draft": 0}, ValueError, "max_draft: expected an int .*got 0"),
    ({"max_draft": -1}, ValueError, "max_draft: expected an int .*got -1"),
    ({"max_draft": 2**40}, ValueError, "max_draft: expected an int .*got 1099511627776"),
    ({"max_draft": 2.0}, TypeError, "max_draft: expected an int .*got 2.0"),
    ({"min_match": 0}, ValueError, "min_match: expected an int .*got 0"),
    ({"min_match": 2**31}, ValueError, "min_match: expected an int .*got 2147483648"),
    ({"min_match": 3, "max_match": 2}, ValueError, r"max_match: expected an int in \[3,.*got 2"),
    ({"max_match": 0}, ValueError, "max_match: expected an int .*got 0"),
    ({"max_match": "4"}, TypeError, "max_match: expected an int .*got '4'"),
    (
        {"occurrence": "last"},
        ValueError,
        "occurrence: expected one of 'first', 'recent', got 'last'",
    ),
    ({"occurrence": None}, TypeError, "occurrence: expected one of .*got None"),
    ({"draft_factor": 0}, ValueError, "draft_factor: expected a finite number above 0, got 0"),
    ({"draft_factor": float("nan")}, ValueError, "draft_factor: expected .*got nan"),
    ({"draft_factor": float("inf")}, ValueError, "draft_factor: expected .*got inf"),
    ({"draft_factor": "1"}, TypeError, "draft_factor: expected .*got '1'"),
    ({"periodic": 1}, TypeError, "periodic: expected a bool, got 1"),
    ({"limits": 3}, TypeError, r"limits: expected int32\[2,\], got int"),
    ({"limits": LENGTHS[:1]}, ValueError, r"limits: expected int32\[2,\], got int32\[1\]"),
    ({"limits": LENGTHS.astype("int8")}, TypeError, "limits: expected int32.*got int8"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), TEXT_ERRORS)
def test_extend(state, arguments, error, message):
    arguments = {"state": state, "tokens": TOKENS, "lengths": LENGTHS} | arguments
    with pytest.raises(error, match=message):
        jax_sa.extend(**arguments)
    with pytest.raises(error, match=message):
        jax_sa.extend_lookup(**arguments, max_draft=2)


@pytest.mark.parametrize(("arguments", "error", "message"), LOOKUP_ERRORS)
def test_lookup(state, arguments, error, message):
    with pytest.raises(error, match=message):
        jax_sa.lookup(state, **{"max_draft": 2} | arguments)
    with pytest.raises(error, match=message):
        jax_sa.extend_lookup(state, TOKENS, LENGTHS, **{"max_draft": 2} | arguments)


def test_slot_lists(state):
    with pytest.raises(TypeError, match="slots: expected int32.*got int"):
        jax_sa.reset(state, 1)
    with pytest.raises(TypeError, match="slots: expected int32.*got NoneType"):
        jax_sa.reset(state, None)
    with pytest.raises(ValueError, match=r"dst: expected int32\[2,\], got int32\[1\]"):
        jax_sa.copy_slots(state, LENGTHS, LENGTHS[:1])
    with pytest.raises(TypeError, match="src: expected int32.*got list"):
        jax_sa.copy_slots(state, [0], [1])


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(jax_sa.State)])
def test_leaves_that_do_not_belong_together(state, field):
    other = jax_sa.init(3, 9)
    mixed = dataclasses.replace(state, **{field: getattr(other, field)})
    with pytest.raises(ValueError, match=r"state\.\w+: expected int32"):
        jax_sa.lookup(mixed, max_draft=2)
    wrong = dataclasses.replace(state, **{field: getattr(state, field).astype("int16")})
    with pytest.raises(TypeError, match=rf"state\.{field}: expected int32.*got int16"):
        jax_sa.lookup(wrong, max_draft=2)


def test_errors_come_while_tracing(state):
    with pytest.raises(ValueError, match="max_draft"):
        jax.jit(lambda s: jax_sa.lookup(s, max_draft=0)).trace(state)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"built": {}}, TypeError, "state: expected a jax_sa.State or ScanState, got dict"),
        ({"built": jax_sa.init(2, 8)}, ValueError, "built: expected one slot .*8, got 2 of 8"),
        ({"built": jax_sa.init(1, 9)}, ValueError, "built: expected one slot .*8, got 1 of 9"),
        ({"slot": 2}, ValueError, r"slot: expected an int in \[0, 1\], got 2"),
        ({"slot": -1}, ValueError, r"slot: expected an int in \[0, 1\], got -1"),
        ({"slot": True}, TypeError, "slot: expected an int .*got True"),
        ({"slot": LENGTHS}, ValueError, r"slot: expected int32\[\], got int32\[2\]"),
        ({"slot": np.zeros((), np.int64)}, TypeError, r"slot: expected int32\[\], got int64"),
    ],
)
def test_insert(state, arguments, error, message):
    with pytest.raises(error, match=message):
        jax_sa.insert(**{"state": state, "built": jax_sa.init(1, 8), "slot": 0} | arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"length": 0}, ValueError, "length: expected an int .*got 0"),
        ({"length": None}, TypeError, "length: expected an int .*got None"),
        ({"starts": 0}, TypeError, r"starts: expected int32\[2,\], got int"),
        ({"starts": LENGTHS[:1]}, ValueError, r"starts: expected int32\[2,\], got int32\[1\]"),
        ({"slots": LENGTHS[:1]}, ValueError, r"starts: expected int32\[1,\], got int32\[2\]"),
    ],
)
def test_read_tokens(state, arguments, error, message):
    with pytest.raises(error, match=message):
        jax_sa.read_tokens(state, **{"starts": LENGTHS, "length": 3} | arguments)


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        ([1.5], TypeError, "tokens: expected a sequence of ints, got float64"),
        ([[1]], TypeError, r"tokens: expected a sequence of ints, got int64\[1, 1\]"),
        ([1] * 9, ValueError, "tokens: expected at most 8, got 9"),
        ([2**31], ValueError, "tokens: expected int32s, got 2147483648..2147483648"),
    ],
)
def test_build_on_host(tokens, error, message):
    with pytest.raises(error, match=message):
        jax_sa.build_on_host(tokens, 8)
    with pytest.raises(ValueError, match="max_seq_len: expected an int"):
        jax_sa.build_on_host([], 0)
    with pytest.raises(ValueError, match="seed: expected an int"):
        jax_sa.build_on_host([], 8, seed=2**31)
