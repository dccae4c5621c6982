"""The kernels of the example's layers against its plain layers, for blocks of every kind."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_llama_attention as blocks
from requirements import unavailable

from jax_sa.llama import attention, attention_kernel, layer_kernels, model, weights
from jax_sa.llama.config import Config

LAYERS, GROUPS, HEAD_DIM, HIDDEN, INNER = blocks.LAYERS, blocks.GROUPS, 32, 96, 160
NORM = jnp.linspace(0.5, 2.0, HIDDEN)


def make_config(shared):
    return Config(
        architecture="LlamaForCausalLM",
        vocab_size=64,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_layers=LAYERS,
        num_heads=GROUPS * shared,
        num_kv_heads=GROUPS,
        head_dim=HEAD_DIM,
        max_position_embeddings=512,
        rope_theta=10_000.0,
        tied=True,
    )


def make_layers(config, dtype):
    random = np.random.default_rng(0)

    def draw(weight):
        scale = 1.0 if len(weight.shape) == 1 else 0.1
        return jnp.asarray(scale * random.standard_normal(weight.shape), dtype)

    made = jax.tree.map(draw, weights.describe(config)["layers"])
    return jax.tree.map(
        lambda *x: jnp.stack(x), *(weights._fuse_layer(config, jnp, x) for x in made)
    )


def plain(config, layers, x, block, memory):
    rotation = model.rotate_by(config, block.positions)
    attend = attention.cached_attention(block, None)

    def step(x, memory, layer, index):
        return model.decoder_layer(config, layer, x, rotation, attend, memory, index)

    x, memory = model._through_layers(step, layers, x, memory)
    return model.rms_norm(x, NORM.astype(x.dtype), config.rms_norm_eps), memory


@pytest.mark.parametrize(
    ("name", "shared"),
    [("drafts", 1), ("one token a row", 3), ("padding between", 3), ("prompts", 3)],
)
def test_the_kernels_are_the_layers(name, shared):
    config = make_config(shared)
    layers = make_layers(config, jnp.float32)
    keys, values = blocks.cache(1, HEAD_DIM), blocks.cache(2, HEAD_DIM)
    memory = ((keys,), (values,))
    x = blocks.draw(3, len(blocks.BLOCKS[name][0]), HIDDEN)
    block = blocks.make_block(name, shared, keys)
    with jax.default_matmul_precision("highest"):
        wanted, written = jax.jit(plain, static_argnums=0)(config, layers, x, block, memory)
    tiled = blocks.make_block(name, shared, keys, width=attention_kernel.tile_width(1, shared))
    rotation = model.rotate_by(config, block.positions)
    got, kept = layer_kernels.through_layers(
        layers, NORM, x, rotation, tiled, memory, config.rms_norm_eps, interpret=True
    )
    is_valid = (block.rows >= 0) & (block.rows < len(blocks.TABLE))
    np.testing.assert_allclose(got[is_valid], wanted[is_valid], atol=2e-5, rtol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), kept, written)


@pytest.mark.parametrize("total", [1, 5, 33, 64, 65, 160, 640, layer_kernels.MOST_TOKENS])
def test_the_kernels_on_a_gpu(total):
    """The two differ by how they round to bfloat16: about one part in a hundred after three layers.

    A wrong token, of which the whole state differs, would show: the worst token is looked at.
    """
    if jax.default_backend() != "gpu":
        unavailable("there is no GPU")
    config = make_config(3)
    layers = make_layers(config, jnp.bfloat16)
    rows, size = -(-total // 5), 64
    keys, values = (blocks.draw(i, LAYERS, 8 * rows, GROUPS, size, HEAD_DIM) for i in (1, 2))
    memory = ((keys.astype(jnp.bfloat16),), (values.astype(jnp.bfloat16),))
    token = jnp.arange(total, dtype=jnp.int32)
    pages = jnp.arange(8 * rows, dtype=jnp.int32).reshape(rows, 8)
    block = attention.make_block(token // 5, 300 + token // 5 + token % 5, pages, memory, 3)
    x = blocks.draw(3, total, HIDDEN).astype(jnp.bfloat16)
    wanted, written = jax.jit(plain, static_argnums=0)(config, layers, x, block, memory)
    rotation = model.rotate_by(config, block.positions)
    through = functools.partial(layer_kernels.through_layers, eps=config.rms_norm_eps)
    got, kept = jax.jit(through)(layers, NORM.astype(x.dtype), x, rotation, block, memory)
    a, b = np.asarray(got, np.float32), np.asarray(wanted, np.float32)
    assert (np.linalg.norm(a - b, axis=1) < 0.05 * np.linalg.norm(b, axis=1)).all()
    for new, old in zip(jax.tree.leaves(kept), jax.tree.leaves(written), strict=True):
        np.testing.assert_allclose(
            np.asarray(new, np.float32), np.asarray(old, np.float32), atol=0.25
        )


@pytest.mark.parametrize("is_embedding", [True, False])
@pytest.mark.parametrize(("total", "outputs"), [(1, 80), (7, 80), (64, 80), (65, 128), (128, 256)])
def test_the_head(total, outputs, is_embedding):
    x, head = blocks.draw(1, total, HIDDEN), blocks.draw(2, HIDDEN, outputs)
    with jax.default_matmul_precision("highest"):
        wanted = x @ head
    head = head.T if is_embedding else head
    got = layer_kernels.unembed(x, head, is_embedding=is_embedding, interpret=True)
    np.testing.assert_allclose(got, wanted, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("is_embedding", [True, False])
@pytest.mark.parametrize("total", [1, 33, 64, 96, 128])
def test_the_head_on_a_gpu(total, is_embedding):
    if jax.default_backend() != "gpu":
        unavailable("there is no GPU")
    x, head = blocks.draw(1, total, 576), blocks.draw(2, 576, 49152)
    x, head = x.astype(jnp.bfloat16), head.astype(jnp.bfloat16)
    wanted = jnp.matmul(x, head, preferred_element_type=jnp.float32)
    head = head.T if is_embedding else head
    got = jax.jit(functools.partial(layer_kernels.unembed, is_embedding=is_embedding))(x, head)
    np.testing.assert_allclose(got, wanted, atol=1e-3, rtol=1e-3)


def test_where_they_are_possible():
    config = make_config(3)
    layers = make_layers(config, jnp.bfloat16)
    most = layer_kernels.MOST_TOKENS
    assert layer_kernels.is_possible(layers, most, HEAD_DIM)
    assert not layer_kernels.is_possible(layers, most + 1, HEAD_DIM)
    assert not layer_kernels.is_possible(layers, 1, 16)
    assert not layer_kernels.is_possible(layers | {"qkv_bias": layers["o"]}, 1, HEAD_DIM)
    assert not layer_kernels.is_possible([layers], 1, HEAD_DIM)
    assert not layer_kernels.is_possible(make_layers(config, jnp.float32), 1, HEAD_DIM)
    narrow = make_layers(dataclasses.replace(config, intermediate_size=168), jnp.bfloat16)
    assert not layer_kernels.is_possible(narrow, 1, HEAD_DIM)


@pytest.mark.parametrize(
    ("outputs", "most"), [(80, layer_kernels.TOKENS), (256, layer_kernels.HEAD_TILE)]
)
def test_where_the_head_is_possible(outputs, most):
    head = jnp.zeros((HIDDEN, outputs), jnp.bfloat16)
    for is_embedding, array in ((False, head), (True, head.T)):
        can_unembed = functools.partial(layer_kernels.can_unembed, is_embedding=is_embedding)
        assert can_unembed(array, most)
        assert not can_unembed(array, most + 1)
        assert not can_unembed(array[1:, 1:], 1)
        assert not can_unembed(array.astype(jnp.float32), 1)
