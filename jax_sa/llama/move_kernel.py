"""`jax_sa.move_entries` as a kernel for GPUs, which touches only what moves.

A step that verifies trees moves few entries, and mostly none: the leader's chain is in its place.
XLA would read and write every place of every path, in three kernels. Here a program looks at one
row's path, for one group of heads in one layer, and goes on to the last entry that moves.

A program is one warp, whose loads and stores are in order. An entry moves down, and the entries of
a row in ascending order, so none is overwritten before it is read.

Letters: B rows, N nodes of a tree, M pages of a row, L layers, P pages in all, G key/value heads,
S tokens of a page, H head size.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

PLACES = 16
"""Places of a path that a program moves at a time."""


def move_entries(
    keys: jax.Array,
    values: jax.Array,
    start: jax.Array,
    path: jax.Array,
    pages: jax.Array,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Keys and values with the entries of accepted paths in order, in place.

    Args:
      keys: [L, P, G, S, H].
      values: likewise.
      start: int32[B] as in `jax_sa.move_entries`, like `path`.
      path: int32[B, 1 + N].
      pages: int32[B, M] of each row; P or more for none.
      interpret: whether to compute it without a GPU, slowly.
    """
    layers, num_pages, groups, size, head_dim = keys.shape
    rows, width = path.shape
    max_pages = pages.shape[1]

    def move_kernel(start_ref, path_ref, pages_ref, _, __, k_ref, v_ref):
        row, layer, group = map(pl.program_id, range(3))
        start = start_ref[row]
        lane = jnp.arange(head_dim, dtype=jnp.int32)[None]

        def read_path(place):
            """The places of a path, where the row has entries, and whether they move."""
            source = triton.load(path_ref.at[row, place], mask=place < width, other=0)
            return source, (place < width) & (source > place)

        def locate(entry, is_wanted):
            """Where entries of the row are, and whether they are anywhere."""
            nth = entry // size
            is_wanted &= nth < max_pages
            page = triton.load(pages_ref.at[row, nth], mask=is_wanted, other=num_pages)
            at = (layer, page[:, None], group, (entry % size)[:, None], lane)
            return at, is_wanted & (page < num_pages)

        def visit(i, carry):
            place = i * PLACES + jnp.arange(PLACES, dtype=jnp.int32)
            source, moves = read_path(place)
            origin, moves = locate(start + source, moves)
            target, moves = locate(start + place, moves)
            mask = moves[:, None]
            for ref in (k_ref, v_ref):
                triton.store(ref.at[target], triton.load(ref.at[origin], mask=mask), mask=mask)
            return carry

        place = jnp.arange(pl.next_power_of_2(width), dtype=jnp.int32)
        _, moves = read_path(place)
        last = jnp.max(jnp.where(moves, place + 1, 0))
        jax.lax.fori_loop(0, (last + PLACES - 1) // PLACES, visit, 0)

    return pl.pallas_call(
        move_kernel,
        grid=(rows, layers, groups),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (keys, values)],
        input_output_aliases={3: 0, 4: 1},
        compiler_params=triton.CompilerParams(num_warps=1),
        interpret=interpret,
        name="move_entries",
    )(start, path, pages, keys, values)
