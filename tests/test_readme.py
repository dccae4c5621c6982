"""The README is short, and its example runs and prints what it says."""

import contextlib
import io
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

README = pathlib.Path(__file__).parents[1] / "README.md"
MAX_LINES = 120


def test_it_is_short():
    assert len(README.read_text().splitlines()) <= MAX_LINES


def test_example():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)

    def model(params, block, cache):
        return jax.nn.one_hot(block + params, 16), cache

    namespace = {"model": model}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, README, "exec"), namespace)
    comments = re.findall(r"print\(.*\)  ?# (\[.*\]):", code)
    assert printed.getvalue().replace("\n", "").split() == "".join(comments).split()

    last = jnp.array([2, 7], jnp.int32)
    prompt_lengths = np.asarray(namespace["state"].length)  # before it is donated
    accepted, _, state = namespace["decode_step"](1, last, jnp.zeros(1), namespace["state"])
    assert accepted.tokens.shape == (2, 5)
    np.testing.assert_array_equal(state.length, prompt_lengths + accepted.length)
