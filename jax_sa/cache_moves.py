"""Moves the cache entries of an accepted path to where they belong.

Letters: B rows, N nodes of a tree, M pages of a row.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jax_sa._checks import INT32_MAX, check_array


def move_entries(
    entries: Any,
    start: jax.Array,
    path: jax.Array,
    *,
    axes: tuple[int, int],
    pages: jax.Array | None = None,
) -> Any:
    """Makes entry `start[b] + path[b, j]` of row b its entry `start[b] + j`, for all j.

    A step that verifies a tree writes the entries of all its nodes, and keeps those of one path.
    Where the cache is donated or carried by a loop, it is updated in place.

    Args:
      entries: a pytree of arrays, of any dtype and number of axes, such as the keys and values of
        all layers.
      start: int32[B] the entry of each row's last token before the step.
      path: int32[B, 1 + N] the places of the path, ascending, as the accepting ops return it.
      axes: in every array, the axis of rows and that of a row's entries; with `pages`, the axis of
        pages and that of a page's entries.
      pages: int32[B, M] the pages of each row, in order. None: each row has a part of its own.
        Entries beyond a row's last page, or the array, are left alone.

    Raises:
      ValueError, TypeError: at trace time, naming the argument.
    """
    (rows,) = check_array("start", start, jnp.int32, ("B",))
    check_array("path", path, jnp.int32, (rows, "1 + N"))
    if pages is not None:
        check_array("pages", pages, jnp.int32, (rows, "M"))
    leaves = jax.tree.leaves(entries)
    page_axis, entry_axis = axes
    for leaf in leaves:
        if not 0 <= page_axis < leaf.ndim or not 0 <= entry_axis < leaf.ndim:
            raise ValueError(f"axes: expected two of an array {list(leaf.shape)}, got {axes}")
    if page_axis == entry_axis:
        raise ValueError(f"axes: expected two different axes, got {axes}")

    place = jnp.arange(path.shape[1], dtype=jnp.int32)[None]

    def move(array: jax.Array) -> jax.Array:
        # What stays is not written again: its target is beyond every array.
        to = jnp.where(path == place, INT32_MAX, start[:, None] + place)
        shape = array.shape[page_axis], array.shape[entry_axis]
        source = _index(array.ndim, axes, _locate(start[:, None] + path, pages, shape))
        target = _index(array.ndim, axes, _locate(to, pages, shape))
        return array.at[target].set(array.at[source].get(mode="clip"), mode="drop")

    return jax.tree.map(move, entries)


def _locate(
    entry: jax.Array, pages: jax.Array | None, shape: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """The page and the place in it of int32[B, P] entries of rows; out of bounds for none."""
    num_pages, size = shape
    row = jnp.broadcast_to(jnp.arange(entry.shape[0], dtype=jnp.int32)[:, None], entry.shape)
    if pages is None:
        return row, entry
    page = pages.at[row, entry // size].get(mode="fill", fill_value=num_pages)
    return page, entry % size


def _index(ndim: int, axes: tuple[int, int], places: tuple[jax.Array, jax.Array]) -> tuple:
    index: list[Any] = [slice(None)] * ndim
    for axis, place in zip(axes, places, strict=True):
        index[axis] = place
    return tuple(index)
