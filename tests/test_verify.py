"""accept_greedy against a loop over the tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_sa


def draft_of(tokens, length):
    tokens, length = jnp.asarray(tokens, jnp.int32), jnp.asarray(length, jnp.int32)
    return jax_sa.Draft(tokens, length, match_length=length, match_end=length)


def expected(draft, length, targets):
    accepted = 0
    while accepted < length and draft[accepted] == targets[accepted]:
        accepted += 1
    emitted = [*draft[:accepted], targets[accepted]]
    return emitted + [jax_sa.DRAFT_FILL] * (len(targets) - len(emitted)), len(emitted)


@pytest.mark.parametrize("dtype", ["int32", "float32", "bfloat16"])
@pytest.mark.parametrize("seed", range(20))
def test_longest_confirmed_prefix(dtype, seed):
    random = np.random.default_rng(seed)
    rows, max_draft, vocabulary = 5, 4, 3
    tokens = random.integers(0, vocabulary, (rows, max_draft))
    length = random.integers(0, max_draft + 1, rows)
    targets = random.integers(0, vocabulary, (rows, 1 + max_draft))
    targets[0, :max_draft] = tokens[0]
    given = jnp.asarray(targets, jnp.int32)
    if dtype != "int32":
        given = jax.nn.one_hot(given, vocabulary, dtype=dtype)
    accepted = jax.jit(jax_sa.accept_greedy)(draft_of(tokens, length), given)
    for row in range(rows):
        want, want_length = expected(tokens[row].tolist(), length[row], targets[row].tolist())
        assert accepted.tokens[row].tolist() == want
        assert int(accepted.length[row]) == want_length


@pytest.mark.parametrize(
    ("draft", "targets", "error", "message"),
    [
        (draft_of([[1]], [1]), jnp.zeros((1, 3), jnp.int32), ValueError, r"int32\[1, 2\], got"),
        (draft_of([[1]], [1]), jnp.zeros((2, 2, 5)), ValueError, r"float32\[1, 2, V\], got"),
        (draft_of([[1]], [1]), jnp.zeros((1, 2), jnp.uint8), TypeError, "targets: .*got uint8"),
        (draft_of([[1]], [1]), [[1, 2]], TypeError, "targets: expected int32.*got list"),
        (draft_of([1], [1]), jnp.zeros((1, 2), jnp.int32), ValueError, r"draft.tokens: .*B, K"),
        ([[1]], jnp.zeros((1, 2), jnp.int32), TypeError, "draft: expected a jax_sa.Draft"),
    ],
)
def test_errors(draft, targets, error, message):
    with pytest.raises(error, match=message):
        jax_sa.accept_greedy(draft, targets)
