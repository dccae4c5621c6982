"""Ops follow the sharding of the slots: the same results, without a collective and in place.

On several GPUs where there are, else on virtual CPU devices.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from copies import assert_in_place
from inspection import with_arrays
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from meshes import MESHES, make_mesh
from op_calls import (
    ADDING,
    CAPACITY,
    OPS,
    SLOTS,
    UPDATING,
    WITH_SLOTS,
    arguments,
    equal,
    names_of,
    pick,
    state_of,
)

import jax_sa

COLLECTIVES = r" (all-\w+|collective-\w+|reduce-scatter|ragged-all-to-all)(-start)?\("
EIGHTH = jax_sa.get_state_size(CAPACITY) // 8


@pytest.fixture(params=list(MESHES))
def mesh(request):
    return make_mesh(request.param)


@pytest.fixture(params=["shardy", "gspmd"])
def partitioner(request):
    """Both partitioners, as long as JAX has the older one."""
    before = jax.config.jax_use_shardy_partitioner
    jax.config.update("jax_use_shardy_partitioner", request.param == "shardy")
    yield request.param
    jax.config.update("jax_use_shardy_partitioner", before)


def place(values, mesh):
    """The arguments of ops: the slots and the rows of slots split over `data`, the rest whole."""
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["data"], []))
    return {
        name: jax.device_put(value, whole if name in WITH_SLOTS else split)
        for name, value in values.items()
    }


def collectives(compiled):
    return sorted({match[1] for match in re.finditer(COLLECTIVES, compiled.as_text())})


def assert_split(result, mesh):
    for leaf in jax.tree.leaves(result):
        expected = NamedSharding(mesh, PartitionSpec("data"))
        assert leaf.sharding.is_equivalent_to(expected, leaf.ndim)


def compile_op(op, placed):
    donated = 0 if op in UPDATING else ()
    return jax.jit(OPS[op], donate_argnums=donated).lower(*pick(op, placed)).compile()


def part(state, mesh):
    """The shapes of one device's part of a state."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (leaf.shape[0] // mesh.shape["data"], *leaf.shape[1:]), leaf.dtype
        ),
        state,
    )


@pytest.mark.parametrize("op", OPS)
def test_plain_jit(mesh, op):
    values = arguments()
    expected = OPS[op](*pick(op, values))
    placed = place(values, mesh)
    compiled = compile_op(op, placed)
    assert collectives(compiled) == (["all-reduce"] if op in ADDING else [])
    if op in UPDATING:
        assert_in_place(compiled, part(values["state"], mesh), smallest=EIGHTH, room=EIGHTH)
    result = compiled(*pick(op, placed))
    equal(result, expected)
    if op in UPDATING:
        assert_split(state_of(result), mesh)
    if op not in ADDING and op not in UPDATING:
        assert_split(result, mesh)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_both_partitioners(partitioner, op):
    mesh, values = make_mesh(), arguments(1)
    expected = OPS[op](*pick(op, values))
    placed = place(values, mesh)
    compiled = compile_op(op, placed)
    assert collectives(compiled) == (["all-reduce"] if op in ADDING else [])
    equal(compiled(*pick(op, placed)), expected)


@pytest.mark.parametrize("op", OPS)
def test_not_jitted(op):
    mesh, values = make_mesh(), arguments(2)
    equal(OPS[op](*pick(op, place(values, mesh))), OPS[op](*pick(op, values)))


@pytest.mark.parametrize("op", OPS)
def test_inside_set_mesh(op):
    """A mesh around the program, whose axes are Explicit, changes nothing."""
    mesh, values = make_mesh("explicit"), arguments(2)
    expected = OPS[op](*pick(op, values))
    with jax.set_mesh(mesh):
        equal(jax.jit(OPS[op])(*pick(op, place(values, mesh))), expected)


def in_while(op):
    """The op three times, on the state that the time before left; the last results."""

    def run(state, *rest):
        result = OPS[op](state, *rest)

        def body(carry):
            step, result = carry
            return step + 1, OPS[op](state_of(result) if op in UPDATING else state, *rest)

        return jax.lax.while_loop(lambda carry: carry[0] < 2, body, (0, result))[1]

    return run


def in_scan(op):
    def run(state, *rest):
        def body(state, _):
            result = OPS[op](state, *rest)
            return (state_of(result), None) if op in UPDATING else (state, result)

        state, results = jax.lax.scan(body, state, length=3)
        return state if op in UPDATING else results

    return run


@functools.cache
def on_one_device(op, loop):
    return jax.device_get(jax.jit(loop(op))(*pick(op, arguments())))


@pytest.mark.parametrize("loop", [in_while, in_scan])
@pytest.mark.parametrize("op", OPS)
def test_loops(mesh, op, loop):
    values, expected = arguments(), on_one_device(op, loop)
    placed = place(values, mesh)
    run = jax.jit(loop(op), donate_argnums=0 if op in UPDATING else ())
    compiled = run.lower(*pick(op, placed)).compile()
    assert collectives(compiled) in ([], ["all-reduce"] if op in ADDING else [])
    if op in UPDATING:
        assert_in_place(compiled, part(values["state"], mesh), smallest=EIGHTH, room=EIGHTH)
    equal(compiled(*pick(op, placed)), expected)


@pytest.mark.parametrize("op", OPS)
def test_shard_map(mesh, op):
    """Each shard's slots are numbered from 0 on: ops do what they do to its part alone."""
    values, shards = arguments(), mesh.shape["data"]
    split, whole = PartitionSpec("data"), PartitionSpec()
    specs = tuple(whole if name in WITH_SLOTS else split for name in names_of(op))
    run = jax.shard_map(OPS[op], mesh=mesh, in_specs=specs, out_specs=split)
    compiled = jax.jit(run).lower(*pick(op, place(values, mesh))).compile()
    assert not collectives(compiled)
    got = compiled(*pick(op, place(values, mesh)))
    size = SLOTS // shards
    parts = [
        {
            name: value
            if name in WITH_SLOTS
            else jax.tree.map(lambda x, s=shard: x[s * size : (s + 1) * size], value)
            for name, value in values.items()
        }
        for shard in range(shards)
    ]
    results = [OPS[op](*pick(op, part)) for part in parts]
    equal(got, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *results))


@pytest.mark.parametrize("other", [1, 2])
def test_beside_an_axis_that_is_manual(other):
    """In a shard_map over one axis only, the other is left to the partitioner."""
    mesh, values = make_mesh("auto 2x2"), arguments()
    mesh = Mesh(mesh.devices[:, :other], mesh.axis_names)
    split = PartitionSpec("data")
    run = jax.shard_map(
        OPS["extend_lookup"], mesh=mesh, in_specs=split, out_specs=split, axis_names={"data"}
    )
    placed = pick("extend_lookup", place(values, mesh))
    compiled = jax.jit(run).lower(*placed).compile()
    assert not collectives(compiled)
    equal(compiled(*placed), OPS["extend_lookup"](*pick("extend_lookup", values)))


@pytest.mark.parametrize("axes", [["data", None], [None, "data"]])
@pytest.mark.parametrize("op", ["extend_lookup", "extend_lookup slots", "reset"])
def test_vmapped_and_sharded(op, axes):
    """States of a vmapped axis, split over that axis or over their slots."""
    mesh = make_mesh()
    elements = [pick(op, arguments(seed)) for seed in range(4)]
    together = [
        jax.tree.map(lambda *x: jnp.stack(x), *both) for both in zip(*elements, strict=True)
    ]
    expected = jax.vmap(OPS[op])(*together)
    placed = [
        jax.device_put(
            value,
            NamedSharding(mesh, PartitionSpec(*([] if name in WITH_SLOTS else axes))),
        )
        for name, value in zip(names_of(op), together, strict=True)
    ]
    compiled = jax.jit(jax.vmap(OPS[op]), donate_argnums=0).lower(*placed).compile()
    assert collectives(compiled) == (["all-reduce"] if op in ADDING else [])
    equal(compiled(*placed), expected)


def test_a_copy_from_another_device_is_out_of_range():
    mesh, values = make_mesh(), arguments()
    state = place(values, mesh)["state"]
    local = SLOTS // mesh.shape["data"]
    src, dst = jnp.asarray([0, 0], jnp.int32), jnp.asarray([1, local], jnp.int32)
    copied = jax.jit(jax_sa.copy_slots)(state, src, dst)
    assert int(copied.status[local]) & jax_sa.Status.OUT_OF_RANGE
    expected = jax_sa.copy_slots(values["state"], src[:1], dst[:1])
    expected = with_arrays(expected, status=np.asarray(copied.status))
    equal(copied, expected)


def test_a_replicated_state_stays_so(mesh):
    """As in an engine whose parameters are split, and whose rows are not."""
    whole = NamedSharding(mesh, PartitionSpec())
    for op in OPS:
        values = arguments()
        expected = OPS[op](*pick(op, values))
        placed = jax.device_put(pick(op, values), whole)
        compiled = compile_op(op, dict(zip(names_of(op), placed, strict=True)))
        assert not collectives(compiled)
        result = compiled(*placed)
        equal(result, expected)
        assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(result))


def test_rows_that_are_whole_are_cut():
    """Rows that every device has are no reason to gather a state, or to refuse."""
    mesh, values = make_mesh(), arguments()
    placed = place(values, mesh)
    rest = jax.device_put(pick("extend", values)[1:], NamedSharding(mesh, PartitionSpec()))
    compiled = jax.jit(jax_sa.extend, donate_argnums=0).lower(placed["state"], *rest).compile()
    assert not collectives(compiled)
    result = compiled(placed["state"], *rest)
    assert_split(result, mesh)
    equal(result, OPS["extend"](*pick("extend", values)))


def test_a_state_made_inside_follows_the_rows():
    mesh, values = make_mesh(), arguments()
    placed = place(values, mesh)

    @jax.jit
    def fill(tokens, lengths):
        return jax_sa.extend(jax_sa.init(SLOTS, CAPACITY), tokens, lengths)

    assert not collectives(fill.lower(placed["tokens"], placed["lengths"]).compile())
    assert_split(fill(placed["tokens"], placed["lengths"]), mesh)


def refused(kind):
    """The error on an Explicit mesh, where it is known while tracing, and on an Auto one."""
    return ValueError if kind == "explicit" else jax.errors.JaxRuntimeError


@pytest.mark.parametrize("kind", ["auto", "explicit"])
def test_what_cannot_be_followed_is_refused(kind):
    mesh, values = make_mesh(kind), arguments()
    placed = place(values, mesh)
    state = placed["state"]

    def put(array, *axes):
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))

    inside = dataclasses.replace(state, tokens=put(state.tokens, None, "data"))
    with pytest.raises(refused(kind), match=r"state.tokens: expected .* over its slots alone"):
        jax.jit(OPS["validate"])(inside)
    mixed = dataclasses.replace(state, index=put(state.index))
    with pytest.raises(refused(kind), match=r"state.index: expected .* like the rest of its slots"):
        jax.jit(OPS["validate"])(mixed)
    whole = jax.tree.map(put, values["state"])
    with pytest.raises(refused(kind), match=r"(tokens|state.numbers): expected .*, got"):
        jax.jit(jax_sa.extend)(whole, placed["tokens"], placed["lengths"])
    pool = jax_sa.init_pool(64, num_groups=4)
    split_pool = jax.tree.map(lambda leaf: put(leaf, "data"), pool)
    with pytest.raises(refused(kind), match=r"pool.ring: expected .* over nothing"):
        jax.jit(functools.partial(jax_sa.lookup, max_draft=2))(state, pool=split_pool)
    with pytest.raises(refused(kind), match=r"state.tokens: expected .* over nothing"):
        jax.jit(jax_sa.insert_slots)(jax.tree.map(put, pool), state, put(values["slots"]))
    with pytest.raises(refused(kind), match=r"destinations\['a'\]: expected .* over nothing"):
        jax.jit(jax_sa.fused_copy)({"a": put(jnp.zeros(8), "data")}, {"a": put(jnp.ones(4))})


def test_groups_of_a_pool_over_devices(mesh):
    values = arguments()
    pool = jax_sa.init_pool(64, num_groups=8)
    groups = jnp.asarray(values["groups"] * 3 - 1, jnp.int32)
    rest = values["tokens"], values["lengths"]
    expected = jax_sa.insert(pool, *rest, groups=groups)
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["data"], []))
    placed = jax.device_put(pool, split), *jax.device_put((*rest, groups), whole)

    def insert(pool, tokens, lengths, groups):
        return jax_sa.insert(pool, tokens, lengths, groups=groups)

    compiled = jax.jit(insert, donate_argnums=0).lower(*placed).compile()
    assert not collectives(compiled)
    result = compiled(*placed)
    equal(result, expected)
    assert_split(result, mesh)


def test_groups_of_followers_over_devices(mesh):
    values = arguments()
    followers = jax_sa.init_followers(20, num_groups=8)
    logits = jax.random.normal(jax.random.key(0), (values["groups"].size, 20))
    rest = jnp.asarray(values["tokens"])[:, 0] % 20, logits, jnp.asarray(values["groups"] * 3 - 1)
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["data"], []))

    def note(followers, tokens, logits, groups):
        return jax_sa.note_followers(followers, tokens, logits, groups=groups)

    expected = note(followers, *rest)
    placed = jax.device_put(followers, split), *jax.device_put(rest, whole)
    compiled = jax.jit(note, donate_argnums=0).lower(*placed).compile()
    assert not collectives(compiled)
    result = compiled(*placed)
    equal(result, expected)
    assert_split(result, mesh)


@pytest.mark.parametrize("in_jit", [False, True])
def test_init(mesh, in_jit):
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    init = functools.partial(jax_sa.init, SLOTS, CAPACITY, seed=3, sharding=sharding)
    state = jax.jit(init)() if in_jit else init()
    assert_split(state, mesh)
    equal(state, jax_sa.init(SLOTS, CAPACITY, seed=3))


@pytest.mark.parametrize(
    ("num_slots", "axes", "error", "message"),
    [
        (SLOTS, "data", TypeError, "sharding: expected a jax.sharding.Sharding, got str"),
        (SLOTS + 1, ["data"], ValueError, "sharding: expected to split 9 slots into equal parts"),
        (SLOTS, [None, "data"], ValueError, "sharding: expected to split the slots alone"),
    ],
)
def test_init_refuses(num_slots, axes, error, message):
    sharding = NamedSharding(make_mesh(), PartitionSpec(*axes)) if axes != "data" else axes
    with pytest.raises(error, match=message):
        jax_sa.init(num_slots, CAPACITY, sharding=sharding)


@pytest.mark.parametrize("with_pool", [False, True])
@pytest.mark.parametrize("axes", [[], ["data"]])
def test_manager(mesh, axes, with_pool):
    """Beside an engine on a mesh: its tokens are there, and so are the automata."""

    def run(sharding, put):
        config = jax_sa.SAConfig(max_seq_len=64, max_slots=8, max_draft=4, sharding=sharding)
        pool = jax_sa.init_pool(64, num_groups=2) if with_pool else None
        manager = jax_sa.SuffixAutomatonManager(config, 3, pool=pool)
        rng = np.random.default_rng(0)
        for request in range(7):
            group = {"group": request % 2} if with_pool else {}
            manager.add_request(request, rng.integers(0, 3, 20), **group)
        manager.prepare([5, 1, 6])
        tokens, lengths = put((jnp.ones((3, 2), jnp.int32), jnp.asarray([2, 3, 2], jnp.int32)))
        drafts = [manager.lookup(), manager.extend(tokens, lengths)]
        manager.remove_request(1)  # whose text has a gap
        manager.remove_request(5, start=3)
        return [*drafts, manager.lookup()], manager.pool, manager.state

    drafts, pool, _ = run(None, lambda x: x)
    whole = NamedSharding(mesh, PartitionSpec())
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    got, got_pool, state = run(sharding, lambda x: jax.device_put(x, whole))
    equal(got, drafts)
    equal(got_pool, pool)
    assert not with_pool or pool.status.tolist() == [0, jax_sa.Status.OUT_OF_RANGE]
    assert not with_pool or pool.head.tolist() == [0, 20]
    assert state.edges.sharding.is_equivalent_to(sharding, 3)


def test_seqlens_of_split_rows(mesh):
    """Lengths are few: every device gets those of all rows."""
    kv, q = (jnp.asarray(x, jnp.int32) for x in ([9, 3, 5, 7], [2, 0, 1, 3]))
    expand = jax.jit(functools.partial(jax_sa.expand_seqlens, total=8, return_offsets=True))
    whole = jax.device_put((kv, q), NamedSharding(mesh, PartitionSpec()))
    equal(expand(*whole), expand(kv, q))
    if AxisType.Explicit not in mesh.axis_types:
        split = jax.device_put((kv, q), NamedSharding(mesh, PartitionSpec("data")))
        equal(expand(*split), expand(kv, q))


def test_copies_of_replicated_buffers(mesh):
    whole = NamedSharding(mesh, PartitionSpec())
    to = {"a": jnp.zeros((6, 4)), "b": jnp.zeros(8)}
    from_ = {"a": jnp.ones((3, 4)), "b": jnp.ones(2)}
    expected = jax_sa.fused_copy(to, from_)
    copy = jax.jit(jax_sa.fused_copy, donate_argnums=0)
    placed = jax.device_put((to, from_), whole)
    compiled = copy.lower(*placed).compile()
    assert not collectives(compiled)
    equal(compiled(*placed), expected)
