"""The detector of copies sees the copies that there are."""

import jax
import jax.numpy as jnp
import pytest
from copies import assert_in_place, find_copies

SIZE = 1 << 16
BUFFER = jax.ShapeDtypeStruct((SIZE,), jnp.int32)
LIMITS = {"smallest": 4 * SIZE, "room": 4 * SIZE}


def compile_loop(body, donate=0):
    def loop(buffer):
        return jax.lax.fori_loop(0, 9, body, buffer)

    return jax.jit(loop, donate_argnums=donate).lower(BUFFER).compile()


def in_place(i, buffer):
    return buffer.at[i].set(i)


def copying(i, buffer):
    """The old contents are needed after the first update."""
    return jnp.where(buffer[-1] > i, in_place(i, buffer), jnp.flip(in_place(i + 1, buffer)))


def test_an_update_in_place_passes():
    assert_in_place(compile_loop(in_place), BUFFER, **LIMITS)


def test_a_copy_is_seen():
    compiled = compile_loop(copying)
    assert find_copies(compiled.as_text(), 4 * SIZE)
    assert not find_copies(compiled.as_text(), 4 * SIZE + 1)
    with pytest.raises(AssertionError, match="copy"):
        assert_in_place(compiled, BUFFER, **LIMITS)


def test_what_is_not_donated_is_not_in_place():
    compiled = compile_loop(in_place, donate=())
    with pytest.raises(AssertionError):
        assert_in_place(compiled, BUFFER, smallest=2**60, room=2**60)


def test_room_for_a_copy_is_seen():
    compiled = compile_loop(copying)
    with pytest.raises(AssertionError):
        assert_in_place(compiled, BUFFER, smallest=2**60, room=SIZE)


@pytest.mark.parametrize(
    ("line", "size"),
    [
        ("  %copy.1 = s32[64,8]{1,0} copy(%p.1)", 2048),
        ("  ROOT copy.1 = bf16[64,8]{1,0:T(8,128)} copy(p.1), metadata={}", 1024),
        ("  %c = pred[64]{0} copy(%p.1)", 64),
        ("  %c = f8e4m3fn[64]{0} copy(%p.1)", 64),
        ("  %c = c64[3,5]{0} copy(%p.1)", 120),
        ("  %c = s32[] copy(%p.1)", 4),
        ("  %s = (s32[64]{0}, s32[64]{0:S(5)}, u32[]) copy-start(%p.1)", 256),
    ],
)
def test_the_size_of_a_copy(line, size):
    assert find_copies(f"HloModule x\n{line}\n", size) == [line.strip()]
    assert find_copies(line, size + 1) == []


@pytest.mark.parametrize(
    "line",
    [
        "  %copy.1 = s32[64,8]{1,0} add(%copy.2, %p.1)",
        "  %d = s32[64]{0} copy-done(%s)",
        "  %x = s32[64]{0} fusion(%p.1), calls=%wrapped_copy",
    ],
)
def test_what_is_no_copy(line):
    assert find_copies(line, 0) == []
