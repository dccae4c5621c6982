"""The random numbers of a generation's steps."""

import jax
import numpy as np
import pytest

import jax_sa
from jax_sa import sampling


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_the_keys_of_steps_give_independent_numbers(impl):
    steps = 4000

    def draw(carry, _):
        return sampling.of_next_step(carry), sampling.draw(carry.key, 1, 1, 1)

    first = sampling.of_first_step(jax_sa.Sampling(jax.random.key(0, impl=impl), 1.0))
    _, (chances, noise) = jax.lax.scan(draw, first, length=steps)
    uniform = np.concatenate([chances.ravel(), np.exp(-np.exp(-noise.ravel()))])
    found, _ = np.histogram(uniform, bins=20, range=(0, 1))
    expected = 2 * steps / found.size
    assert np.sum((found - expected) ** 2) / expected < 43.8  # chance 0.001 with 19 degrees
    for lag in (1, 2, 3):
        of_chances, of_tokens = (
            np.corrcoef(x.ravel()[lag:], x.ravel()[:-lag])[0, 1] for x in (chances, noise)
        )
        assert abs(of_chances) < 0.06 and abs(of_tokens) < 0.06


def test_generations_of_neighbouring_seeds_have_no_key_in_common():
    keys = set()
    for seed in range(20):
        of_step = sampling.of_first_step(jax_sa.Sampling(jax.random.key(seed), 1.0))
        for _ in range(20):
            keys.add(tuple(jax.random.key_data(of_step.key).tolist()))
            of_step = sampling.of_next_step(of_step)
    assert len(keys) == 400


def test_a_legacy_key_goes_on_like_a_typed_one():
    typed, legacy = (
        sampling.of_next_step(sampling.of_first_step(jax_sa.Sampling(key, 1.0))).key
        for key in (jax.random.key(5), jax.random.PRNGKey(5))
    )
    assert typed == legacy
