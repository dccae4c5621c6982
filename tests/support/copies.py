"""Copies in compiled programs, which an update in place must not make."""

import math
import re

import jax

_COPY = re.compile(r" = (?P<result>.*?) copy(?:-start)?\(")
_ARRAY = re.compile(r"(?P<dtype>pred|[a-z]+(?P<bits>\d+)\w*)\[(?P<sizes>[\d,]*)\]")


def find_copies(program, smallest):
    """The lines of a compiled program's text that copy an array of at least `smallest` bytes.

    An asynchronous copy counts as well: its result is a tuple that holds the array.
    """
    return [
        line.strip()
        for line in program.splitlines()
        if (copy := _COPY.search(line)) and _largest_array(copy["result"]) >= smallest
    ]


def _largest_array(shapes):
    """Bytes of the largest array among shapes as XLA writes them."""
    return max((_bytes(**array.groupdict()) for array in _ARRAY.finditer(shapes)), default=0)


def _bytes(dtype, bits, sizes):
    elements = math.prod(int(size) for size in sizes.split(",") if size)
    return elements * int(bits or 8) // 8  # pred has no bits in its name, and takes a byte


def assert_in_place(compiled, donated, *, smallest, room):
    """A compiled program updates what it was donated where it is.

    It has no copy of `smallest` bytes or more, every leaf of `donated` is aliased to a result, and
    its temporary memory is below `room` bytes, so that none can hide a copy.
    """
    copies = find_copies(compiled.as_text(), smallest)
    assert not copies, copies
    memory = compiled.memory_analysis()
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(donated))
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < room
