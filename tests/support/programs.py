"""Programs as users write them, and what XLA made of them."""

import functools
import math

import copies
import jax
import jax.numpy as jnp

import jax_sa
from jax_sa import _prefill

SLOTS, CAPACITY, MAX_DRAFT, STEPS, PROMPT = 64, 32_768, 8, 100, 1024
POOL_CAPACITY = 2**20


def decode_step(state, targets):
    draft = jax_sa.lookup(state, max_draft=MAX_DRAFT)
    accepted = jax_sa.accept_greedy(draft, targets)
    return jax_sa.extend(state, accepted.tokens, accepted.length)


def fused_step(state, targets):
    lengths = jnp.full(SLOTS, 2, jnp.int32)
    state, draft = jax_sa.extend_lookup(state, targets, lengths, max_draft=MAX_DRAFT)
    return state, draft.tokens


def fori_loop(state, targets):
    return jax.lax.fori_loop(0, STEPS, lambda i, state: decode_step(state, targets), state)


def scan(state, targets):
    def body(state, _):
        return fused_step(state, targets)

    return jax.lax.scan(body, state, length=STEPS)


def while_loop(state, targets):
    def body(carry):
        state, draft = carry
        accepted = jax_sa.accept_greedy(draft, targets)
        return jax_sa.extend_lookup(state, accepted.tokens, accepted.length, max_draft=MAX_DRAFT)

    def unfinished(carry):
        return jnp.any(carry[0].length < CAPACITY // 2)

    return jax.lax.while_loop(unfinished, body, (state, jax_sa.lookup(state, max_draft=MAX_DRAFT)))


def tree_step(state, targets):
    tree = jax_sa.lookup_tree(state, max_nodes=MAX_DRAFT)
    accepted, _ = jax_sa.accept_tree_greedy(tree, targets)
    return jax_sa.extend(state, accepted.tokens, accepted.length)


def tree_loop(state, targets):
    def body(carry):
        state, tree = carry
        accepted, _ = jax_sa.accept_tree_greedy(tree, targets)
        return jax_sa.extend_lookup_tree(
            state, accepted.tokens, accepted.length, max_nodes=MAX_DRAFT
        )

    def unfinished(carry):
        return jnp.any(carry[0].length < CAPACITY // 2)

    tree = jax_sa.lookup_tree(state, max_nodes=MAX_DRAFT)
    return jax.lax.while_loop(unfinished, body, (state, tree))


def following_step(state, targets):
    """What follows a neural draft decides what is appended."""
    lengths = jnp.full(SLOTS, 3, jnp.int32)
    following = jax_sa.lookup_after(state, targets, lengths, max_draft=MAX_DRAFT)
    joined = jax_sa.join_drafts(targets[:, :3], following)
    return jax_sa.extend(state, joined.tokens, joined.length)


def one_slot(state, targets):
    return jax_sa.extend(
        state, targets[:1], jnp.full(1, 3, jnp.int32), slots=jnp.full(1, 5, jnp.int32)
    )


def housekeeping(state, targets):
    slots = targets[0, :2]
    return jax_sa.copy_slots(jax_sa.reset(state, slots), slots, slots + 2)


def reading(state, targets):
    """Tokens that are read decide what is appended."""
    length = targets.shape[1]
    tokens = jax_sa.read_tokens(state, state.length - length, length=length)
    return jax_sa.extend(state, tokens, jnp.full(SLOTS, length, jnp.int32))


PROGRAMS = [
    decode_step,
    fused_step,
    fori_loop,
    scan,
    while_loop,
    one_slot,
    housekeeping,
    reading,
]

AUTOMATON_PROGRAMS = [tree_step, tree_loop, following_step]

WITH_INDEX = [
    *((program, index) for program in PROGRAMS for index in ("automaton", "scan")),
    *((program, "automaton") for program in AUTOMATON_PROGRAMS),
]
"""Programs, and the indexes that they work with."""


def program_id(value):
    """Of a program or of an index, in the name of a test."""
    return getattr(value, "__name__", value)


def pool_step(carry, targets):
    """What is found in the pool decides what is appended, and that goes into the pool."""
    state, pool = carry
    draft = jax_sa.lookup(state, max_draft=MAX_DRAFT, pool=pool)
    accepted = jax_sa.accept_greedy(draft, targets)
    state = jax_sa.extend(state, accepted.tokens, accepted.length)
    return state, jax_sa.insert(pool, accepted.tokens, accepted.length)


def fused_pool_step(carry, targets):
    """Slots whose texts end go into the pool."""
    state, pool = carry
    lengths = jnp.full(SLOTS, 2, jnp.int32)
    state, draft = jax_sa.extend_lookup(state, targets, lengths, max_draft=MAX_DRAFT, pool=pool)
    ended = jnp.where(draft.tokens[:, 0] == 2, jnp.arange(SLOTS, dtype=jnp.int32), -1)
    return (state, jax_sa.insert_slots(pool, state, ended)), draft.tokens


def pool_scan(carry, targets):
    return jax.lax.scan(lambda carry, _: fused_pool_step(carry, targets), carry, length=STEPS)


def pool_while_loop(carry, targets):
    def unfinished(carry):
        return jnp.any(carry[0].length < CAPACITY // 2)

    return jax.lax.while_loop(unfinished, lambda carry: pool_step(carry, targets), carry)


POOL_PROGRAMS = [pool_step, fused_pool_step, pool_scan, pool_while_loop]


def compile_program(program, sharding=None, index="automaton", **options):
    """Compiles `program(state, targets)` with the state donated, from shapes alone."""
    targets = jax.ShapeDtypeStruct((SLOTS, 1 + MAX_DRAFT), jnp.int32)
    return _compile(program, (_state(SLOTS, index), targets), sharding, options)


def compile_pool_program(program, sharding=None, **options):
    """Compiles `program((state, pool), targets)` likewise, the pool donated too."""
    targets = jax.ShapeDtypeStruct((SLOTS, 1 + MAX_DRAFT), jnp.int32)
    return _compile(program, ((_state(SLOTS, "automaton"), _pool()), targets), sharding, options)


def prompt(state, tokens, lengths):
    """Long rows, which CUDA may build in parallel."""
    return jax_sa.extend_lookup(state, tokens, lengths, max_draft=MAX_DRAFT)


def prompt_workspace():
    """Bytes that CUDA builds the texts of `prompt` in."""
    shapes = _prefill.workspace_shapes(SLOTS, PROMPT, CAPACITY)
    return 4 * sum(math.prod(shape) for shape in shapes)


def compile_prompt(sharding=None, **options):
    """Compiles `prompt` likewise."""
    tokens = jax.ShapeDtypeStruct((SLOTS, PROMPT), jnp.int32)
    lengths = jax.ShapeDtypeStruct((SLOTS,), jnp.int32)
    return _compile(prompt, (_state(SLOTS, "automaton"), tokens, lengths), sharding, options)


def compile_insert(sharding=None, index="automaton", **options):
    """Compiles `insert(state, built, slot)` likewise."""
    slot = jax.ShapeDtypeStruct((), jnp.int32)
    return _compile(
        jax_sa.insert, (_state(SLOTS, index), _state(1, index), slot), sharding, options
    )


def _state(num_slots, index):
    return jax.eval_shape(functools.partial(jax_sa.init, num_slots, CAPACITY, index=index))


def _pool():
    return jax.eval_shape(functools.partial(jax_sa.init_pool, POOL_CAPACITY))


def _compile(program, arguments, sharding, options):
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arguments
    )
    lowered = jax.jit(program, donate_argnums=0).lower(*arguments)
    return lowered.compile(compiler_options=options)


def assert_in_place(compiled, index="automaton", workspace=0):
    """No leaf of a slot is copied: nothing as large as an eighth of a slot.

    A scan's whole slots are moved by XLA, which holds those that a call names for a moment.
    `workspace`: bytes that the ops themselves may take.
    """
    eighth = jax_sa.get_state_size(CAPACITY, index=index) // 8
    room = workspace + (eighth if index == "automaton" else 64 * eighth)
    copies.assert_in_place(compiled, _state(SLOTS, index), smallest=eighth, room=room)


def assert_pool_in_place(compiled):
    """Nor is anything as large as an eighth of a slot, or of the pool."""
    eighth = jax_sa.get_state_size(CAPACITY) // 8
    copies.assert_in_place(
        compiled, (_state(SLOTS, "automaton"), _pool()), smallest=eighth, room=eighth
    )
