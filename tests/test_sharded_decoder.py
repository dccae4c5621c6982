"""Decoders on a mesh: rows split over devices, or the parameters, on Auto and on Explicit axes."""

import contextlib
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_model
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from op_calls import equal
from test_sharding import MESHES, make_mesh
from toy_model import SURPRISE, TABLE, VOCABULARY, greedy, init_cache

import jax_sa

ROWS, NEW, MAX_DRAFT = 4, 16, 3


def model(params, tokens, cache):
    """The toy model, told how its only product with the parameters is sharded."""
    column = jnp.arange(cache.tokens.shape[1], dtype=jnp.int32)[None] - cache.length[:, None]
    here = (column >= 0) & (column < tokens.shape[1])
    new = jnp.take_along_axis(tokens, jnp.clip(column, 0, tokens.shape[1] - 1), axis=1)
    text = jnp.where(here, new, cache.tokens)
    place = jnp.arange(1, text.shape[1] + 1, dtype=jnp.int32)[None]
    sums = jnp.cumsum((text + 1) * (place * place % 97), axis=1) % toy_model.MODULUS
    position = cache.length[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    checksum = jnp.take_along_axis(sums, position, axis=1, mode="clip")
    before = jnp.take_along_axis(text, jnp.maximum(position - 1, 0), axis=1, mode="clip")
    bigram = jax.nn.one_hot(jnp.where(position > 0, before, 0) * VOCABULARY + tokens, VOCABULARY**2)
    sharding = jax.typeof(tokens).sharding
    explicit = AxisType.Explicit in sharding.mesh.axis_types
    out = sharding.update(spec=PartitionSpec(sharding.spec[0])) if explicit else None
    ruled = jnp.einsum(
        "btv,v->bt", bigram, params.reshape(-1).astype(jnp.float32), out_sharding=out
    )
    chosen = jnp.where(
        checksum % SURPRISE == 0, checksum % VOCABULARY, jnp.round(ruled).astype(jnp.int32)
    )
    return jax.nn.one_hot(chosen, VOCABULARY), dataclasses.replace(cache, tokens=text)


def request():
    rng = np.random.default_rng(0)
    return (
        jnp.asarray(rng.integers(0, VOCABULARY, (ROWS, 9)), jnp.int32),
        jnp.asarray([9, 5, 7, 3], jnp.int32),
        init_cache(ROWS, 64),
    )


def on(mesh):
    """JAX wants to know the mesh around code on Explicit axes."""
    is_explicit = AxisType.Explicit in mesh.axis_types
    return jax.set_mesh(mesh) if is_explicit else contextlib.nullcontext()


def choices():
    """All choices of mesh, rows and sampling; of any two of these all are in a faster run."""
    split_rows = {"split rows": ["data"], "whole rows": []}
    for name, rows, sampling in itertools.product(MESHES, split_rows, ("greedy", "sampled")):
        odd = ("auto" in name) ^ (rows == "split rows") ^ (sampling == "sampled")
        marks = pytest.mark.slow if odd or "2x2" in name else ()
        case = name, split_rows[rows], sampling == "sampled"
        yield pytest.param(*case, id=f"{name}-{rows}-{sampling}", marks=marks)


@pytest.mark.parametrize(("name", "rows", "sampled"), [*choices()])
def test_generate(name, rows, sampled):
    mesh = make_mesh(name)
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (rows, []))
    sampling = jax_sa.Sampling(jax.random.key(3), 0.8) if sampled else None
    options = {"max_new_tokens": NEW, "sampling": sampling, "max_draft": MAX_DRAFT}
    state = jax_sa.init(ROWS, 64)
    expected = jax_sa.generate(model, jnp.asarray(TABLE), *request(), state=state, **options)
    with on(mesh):
        got = jax_sa.generate(
            model,
            jax.device_put(jnp.asarray(TABLE), whole),
            *jax.device_put(request(), split),
            state=jax_sa.init(ROWS, 64, sharding=split),
            **options,
        )
    equal(got.tokens, expected.tokens)
    equal(got.state, expected.state)
    for leaf in (got.tokens, got.state.edges):
        assert leaf.sharding.is_equivalent_to(split, leaf.ndim)
    if not sampled:
        prompts, lengths, _ = request()
        for row in range(ROWS):
            text = greedy(prompts[row, : lengths[row]], NEW)
            assert np.asarray(got.tokens)[row].tolist() == text


def indexed_meshes():
    """All meshes with both indices; half of them in a faster run, of each kind of axes and rank."""
    for name, index in itertools.product(MESHES, ("automaton", "scan")):
        odd = ("auto" in name) ^ ("2x2" in name) ^ (index == "automaton")
        yield pytest.param(name, index, marks=pytest.mark.slow if odd else ())


@pytest.mark.parametrize(("name", "index"), [*indexed_meshes()])
def test_steps(name, index):
    """The generation of one step is what the next one takes, sharded as before."""
    mesh = make_mesh(name)
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["data"], []))
    decoder = jax_sa.Decoder(model, max_draft=MAX_DRAFT)
    with on(mesh):
        params = jax.device_put(jnp.asarray(TABLE), whole)
        generation = decoder.init(
            params,
            *jax.device_put(request(), split),
            max_new_tokens=NEW,
            state=jax_sa.init(ROWS, 64, index=index, sharding=split),
        )
        while not generation.finished.all():
            generation, _ = decoder.step(params, generation)
            assert generation.state.tokens.sharding.is_equivalent_to(split, 2)
    prompts, lengths, _ = request()
    for row in range(ROWS):
        assert np.asarray(generation.tokens)[row].tolist() == greedy(
            prompts[row, : lengths[row]], NEW
        )


def padded_model(params, tokens, cache):
    """`model`, of a table that two devices share evenly."""
    return model(params[:VOCABULARY], tokens, cache)


@pytest.mark.parametrize("state_axes", [[], ["data"]])
def test_split_parameters(state_axes):
    """Beside a model whose parameters are split, the automata are whole, or split by slots."""
    mesh = make_mesh("auto 2x2")
    rows = NamedSharding(mesh, PartitionSpec(*state_axes))
    params = jax.device_put(
        jnp.pad(jnp.asarray(TABLE), ((0, 1), (0, 0))), NamedSharding(mesh, PartitionSpec("model"))
    )
    got = jax_sa.generate(
        padded_model,
        params,
        *jax.device_put(request(), rows),
        max_new_tokens=NEW,
        max_draft=MAX_DRAFT,
        state=jax_sa.init(ROWS, 64, sharding=rows),
    )
    prompts, lengths, _ = request()
    for row in range(ROWS):
        assert np.asarray(got.tokens)[row].tolist() == greedy(prompts[row, : lengths[row]], NEW)


@pytest.mark.parametrize("name", MESHES)
def test_drafts_and_logits_on_a_mesh(name):
    """The ops beside those on a state, called on split rows."""
    mesh = make_mesh(name)
    split = NamedSharding(mesh, PartitionSpec("data"))
    rng = np.random.default_rng(0)
    state = jax_sa.extend(
        jax_sa.init(4, 64),
        jnp.asarray(rng.integers(0, 3, (4, 30)), jnp.int32),
        jnp.full(4, 30, jnp.int32),
    )
    draft = jax_sa.lookup(state, max_draft=4)
    neural = jnp.asarray(rng.integers(0, 3, (4, 2)), jnp.int32)
    logits = jnp.asarray(rng.normal(size=(4, 5, 3)), jnp.float32)
    key = jax.random.key(0)

    def run(draft, neural, logits):
        merged = jax_sa.merge_drafts(draft, neural)
        return (
            merged,
            jax_sa.share_budget(merged, 9),
            jax_sa.accept_greedy(merged, logits),
            jax_sa.accept_sampled(key, merged, logits, 0.7, 2, 0.9),
        )

    with on(mesh):
        got = jax.jit(run)(*jax.device_put((draft, neural, logits), split))
    equal(got, run(draft, neural, logits))
