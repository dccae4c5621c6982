"""The blocks that a packed decoder compiles, on a CPU and where tokens are multiplied in tiles."""

import itertools

import jax
import pytest

import jax_sa
from jax_sa import packed_blocks
from jax_sa.packed_blocks import TILE

SIZES = list(itertools.product([1, 2, 8, 32, 128, 1000], [0, 1, 32], [1000, 1024, 4096]))


def blocks_of(rows, drafted, budget):
    widths = packed_blocks.step_widths(rows, drafted, budget)
    return widths, packed_blocks.make_blocks(rows, widths, budget)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize(("rows", "drafted", "budget"), SIZES)
def test_every_step_has_a_block(monkeypatch, backend, rows, drafted, budget):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    widths, blocks = blocks_of(rows, drafted, budget)
    assert widths[0] == rows
    widest = min(rows * (1 + drafted), rows + packed_blocks.MAX_DRAFTED, budget)
    if backend == "cpu":
        assert widths[-1] == widest
    assert widest / packed_blocks.GROWTH - TILE <= widths[-1] <= widest
    assert list(widths) == sorted(set(widths))
    plain, reading = blocks[: len(widths)], blocks[len(widths) :]
    assert [(b.total, b.judged, b.reads_prompts) for b in plain] == [(w, w, False) for w in widths]
    assert reading and all(b.reads_prompts for b in reading)
    assert reading[-1].total == budget
    for shorter, longer in itertools.pairwise(reading):
        assert shorter.total < longer.total and shorter.judged <= longer.judged
    assert all(rows <= b.judged <= b.total for b in reading)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_a_small_budget_has_room_for_drafts_beside_prompts(monkeypatch, backend):
    """Where it cuts several blocks to one size, that with the most places to judge stays."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    _, blocks = blocks_of(8, 32, 100)
    assert [(b.total, b.judged) for b in blocks if b.reads_prompts] == [(100, 24)]


@pytest.mark.parametrize(("rows", "drafted", "budget"), SIZES)
def test_no_two_blocks_take_an_accelerator_about_the_same_time(monkeypatch, rows, drafted, budget):
    """But for the narrowest, in which no draft is laid out, each fills its tiles if it may."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    widths, blocks = blocks_of(rows, drafted, budget)
    widest = min(rows * (1 + drafted), rows + packed_blocks.MAX_DRAFTED, budget)
    for sizes, most in (
        (widths[1:], widest),
        ([b.total for b in blocks if b.reads_prompts], budget),
    ):
        assert all(size % TILE == 0 or size == most for size in sizes)
        for shorter, longer in itertools.pairwise(sizes):
            assert longer >= packed_blocks.GROWTH * shorter


def test_an_accelerator_has_few_blocks(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    decoder = jax_sa.PackedDecoder(lambda *_: None)
    assert decoder.widths(1) == (1, 33)
    assert decoder.widths(2) == (2, 64)
    assert decoder.widths(8) == (8, 64, 128, 264)
    assert decoder.widths(8, drafts=False) == (8,)
    assert decoder.widths(32) == (32, 64, 128, 512)
    assert decoder.widths(128) == (128, 256, 512)
    # Of the two that read up to 128 prompt tokens, that with room for drafts has a tile more.
    reading = packed_blocks.make_blocks(32, decoder.widths(32), decoder.budget)[4:]
    assert [(b.total, b.judged) for b in reading] == [(256, 96), (1024, 96)]
