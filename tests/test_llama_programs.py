"""What XLA makes of the example's Llama in a packed decoder, for an H100 that need not be there."""

import functools

import jax
import jax.numpy as jnp
import pytest
import test_gpu_program
from copies import assert_in_place

import jax_sa
from jax_sa._branches import BRANCHES_COPY
from jax_sa.llama import paged, weights
from jax_sa.llama.config import Config

CONFIG = Config(
    architecture="LlamaForCausalLM",
    vocab_size=512,
    hidden_size=128,
    intermediate_size=256,
    num_layers=6,
    num_heads=6,
    num_kv_heads=2,
    head_dim=64,
    max_position_embeddings=512,
    rope_theta=10_000.0,
    tied=True,
)
ROWS, PROMPTS, PROMPT, NEW, PAGE = 8, 72, 192, 200, 64

h100 = test_gpu_program.h100  # the fixture


def make_arguments():
    """Parameters, prompts, their lengths, and the cache."""
    params = jax.tree.map(
        lambda weight: jnp.zeros(weight.shape, jnp.bfloat16), weights.describe(CONFIG)
    )
    pages = ROWS * -(-(PROMPT + NEW) // PAGE)
    return (
        weights.fuse(CONFIG, params),
        jnp.zeros((PROMPTS, PROMPT), jnp.int32),
        jnp.zeros(PROMPTS, jnp.int32),
        paged.init_packed_cache(CONFIG, ROWS, pages, PAGE, PROMPT + NEW, jnp.bfloat16),
    )


@pytest.mark.skipif(BRANCHES_COPY, reason="jax before 0.11.2 copies what a branch updates")
@pytest.mark.parametrize("drafts", [False, True])
def test_no_block_copies_the_cache(h100, monkeypatch, drafts):
    """XLA copied it after the last layers of a block that reads prompts, without a barrier."""
    state = jax.eval_shape(lambda: jax_sa.init(ROWS, PROMPT + NEW) if drafts else None)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    decoder = jax_sa.PackedDecoder(functools.partial(paged.apply_packed, CONFIG))

    def program(params, prompts, lengths, cache, state):
        options = {"rows": ROWS, "max_new_tokens": NEW, "state": state}
        return decoder.generate(params, prompts, lengths, cache, **options)

    *others, cache, state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=h100),
        (*jax.eval_shape(make_arguments), state),
    )
    with jax.sharding.use_abstract_mesh(h100.mesh.abstract_mesh):  # names the GPU to Pallas
        lowered = jax.jit(program, donate_argnums=(3, 4)).lower(*others, cache, state)
    compiled = lowered.compile()
    size = cache.keys[0].size * cache.keys[0].dtype.itemsize
    assert_in_place(compiled, (cache, state), smallest=size // 2, room=2 * size)
