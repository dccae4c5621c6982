"""Decode steps that prepare attention metadata, and checks of the programs that XLA makes."""

import dataclasses
import re

import copies
import jax
import jax.numpy as jnp

import jax_sa

ROWS, PAGES, STEPS = 256, 8192, 10


def metadata_types(rows=ROWS, pages=PAGES):
    shapes = {
        "input_ids": (rows,),
        "out_loc": (rows,),
        "cu_seqlens_k": (rows + 1,),
        "positions": (rows,),
        "seq_lens": (rows,),
        "page_table": (rows, pages),
    }
    return jax_sa.ReplayMetadata(
        **{name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in shapes.items()}
    )


def step(buffers, batch, rows, pages):
    expanded = jax_sa.expand_seqlens(batch.seq_lens, batch.input_ids, total=ROWS)
    batch = dataclasses.replace(batch, positions=expanded.values)
    return jax_sa.copy_replay_metadata(buffers, batch, rows=rows, pages=pages).destinations


def fill_step(buffers, batch, rows, pages):
    return jax_sa.copy_replay_metadata(buffers, batch, rows=rows, pages=pages, fill=0).destinations


def while_loop(buffers, batch, rows, pages):
    def body(carry):
        i, buffers = carry
        return i + 1, step(buffers, batch, rows + i, pages)

    return jax.lax.while_loop(lambda carry: carry[0] < STEPS, body, (0, buffers))[1]


METADATA_PROGRAMS = [step, fill_step, while_loop]


def compile_metadata_program(program, sharding=None, **options):
    """Compiles `program(buffers, batch, rows, pages)` with the buffers donated."""
    scalar = jax.ShapeDtypeStruct((), jnp.int32)
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        (metadata_types(), metadata_types(), scalar, scalar),
    )
    lowered = jax.jit(program, donate_argnums=0).lower(*arguments)
    return lowered.compile(compiler_options=options)


def assert_copies_in_place(compiled):
    """One call copies, and no page table is copied besides."""
    assert len(re.findall(r'custom_call_target="jax_sa_fused_copy"', compiled.as_text())) == 1
    eighth = 4 * ROWS * PAGES // 8
    copies.assert_in_place(compiled, metadata_types(), smallest=eighth, room=eighth)
