"""The blocks that a packed decoder compiles: how many tokens a step may have.

A step runs in the shortest compiled block that does for it. Each block takes time to compile, on a
GPU a second or two: so there are few.

Letters: B rows.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import TypeVar

import jax

WIDTHS, WIDTHS_ON_CPU = (2, 4, 16, 33), (2, 4, 8, 16, 33)
"""Tokens a row, on average, of steps with drafts that read no prompt, about. More won nothing on
recorded texts. On an accelerator, 8 too would make 32 rows about 2 % faster, for two seconds more
of compiling. On a CPU, a place that is left takes as long as one that is used."""

MAX_DRAFTED = 512
"""Drafted tokens that any of these steps verifies at most."""

READING_WIDTH = 3.0
"""Tokens a row, on average, beside the prompt tokens of a step that reads prompts."""

MAX_DRAFTED_READING = 128
"""Drafted tokens that a step verifies at most while it reads prompts. Large batches read often: 128
rows that write 200 tokens each, four of them at every sixth step. Each place whose logits are read
takes time, used or not."""

CHUNKS, CHUNKS_ON_CPU = (128,), (128, 384)
"""Prompt tokens for which the shorter blocks of steps that read prompts have room."""

TILE = 64
"""Tokens that an accelerator multiplies with a matrix at once: those of a tile that is not full
take as long, so a block has as many as fill its tiles. On a CPU, each token counts."""

GROWTH = 1.5
"""Of two blocks for an accelerator, the places of the longer by those of the shorter at least:
where there are few more, little time is saved by having both, which takes longer to compile."""


@dataclasses.dataclass(frozen=True)
class Block:
    """The static sizes of a block."""

    total: int
    """T."""
    judged: int
    """Places whose logits are read at most. The others hold prompt tokens."""
    reads_prompts: bool
    """Whether it is for steps in which some row reads its prompt."""


def step_widths(rows: int, drafted: int, budget: int) -> tuple[int, ...]:
    """The places of the blocks for steps that read no prompt, ascending.

    Args:
      rows: B.
      drafted: tokens of a row's draft at most; 0 where there are none.
      budget: places of a block, at least B.
    """
    most = min(rows * (1 + drafted), rows + MAX_DRAFTED, budget)
    factors = WIDTHS_ON_CPU if _counts_each_token() else WIDTHS
    wider = {min(_fill(rows * factor), most) for factor in factors}
    return rows, *_worthwhile(sorted(wider - {rows}), lambda width: width)


def make_blocks(rows: int, widths: tuple[int, ...], budget: int) -> list[Block]:
    """The blocks to compile: one for each width, then those that read prompts, as they grow.

    Of these, the first has no room for drafts if that makes it much faster, and the last is as long
    as the budget allows.

    Args:
      rows: B.
      widths: as `step_widths` gives them.
      budget: places of a block.
    """
    judged = rows
    if rows > 1:  # a single row that reads its prompt leaves none that could have a draft
        judged = min(int(READING_WIDTH * rows), rows + MAX_DRAFTED_READING, widths[-1])
    chunks = CHUNKS_ON_CPU if _counts_each_token() else CHUNKS
    sizes = [(rows + chunks[0], rows), *((judged + chunk, judged) for chunk in chunks)]
    reading = [
        Block(min(_fill(total), budget), judged, reads_prompts=True)
        for total, judged in (*sizes, (budget, judged))
    ]
    return [
        *(Block(width, width, reads_prompts=False) for width in widths),
        *_worthwhile(reading[::-1], lambda block: block.total)[::-1],
    ]


T = TypeVar("T")


def _worthwhile(sizes: Iterable[T], tokens: Callable[[T], int]) -> list[T]:
    """Of sizes, the most important first, those that take another time than each before them."""
    growth = 1.0 if _counts_each_token() else GROWTH
    kept: dict[int, T] = {}
    for size in sizes:
        places = tokens(size)
        if places not in kept and all(
            max(places, other) >= growth * min(places, other) for other in kept
        ):
            kept[places] = size
    return list(kept.values())


def _fill(places: int) -> int:
    """Places of a block that takes as long as one of so many: on an accelerator, of full tiles."""
    return places if _counts_each_token() else -(-places // TILE) * TILE


def _counts_each_token() -> bool:
    """Whether a token more takes longer, however many there are."""
    return jax.default_backend() == "cpu"
