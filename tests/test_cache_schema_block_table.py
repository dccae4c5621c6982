"""Block-table operations against a table of Python lists, after every operation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_sa.cache_schema import (
    PADDING_PAGE,
    PADDING_SLOT,
    claim_blocks,
    free_blocks,
    init_block_table,
    locate_tokens,
)

SLOTS, PAGES, BLOCKS, BLOCK_SIZE = 4, 8, 5, 16

claim = jax.jit(claim_blocks)
free = jax.jit(free_blocks)
locate = jax.jit(locate_tokens, static_argnames="ratio")


def make_table(num_pages=PAGES):
    return init_block_table(
        num_slots=SLOTS, num_pages=num_pages, max_blocks=BLOCKS, block_size=BLOCK_SIZE
    )


def ints(*values):
    return jnp.array(values, jnp.int32)


class Lists:
    """The obvious block table: a list of pages per slot, and a stack of free pages."""

    def __init__(self):
        self.pages = [[] for _ in range(SLOTS)]
        self.free_pages = list(range(PAGES - 1, 0, -1))

    def claim(self, num_tokens):
        lacking = [
            max(-(-tokens // BLOCK_SIZE) - len(pages), 0)
            for tokens, pages in zip(num_tokens, self.pages, strict=True)
        ]
        left = len(self.free_pages)
        granted = []
        for slot, count in enumerate(lacking):
            possible = slot != PADDING_SLOT and len(self.pages[slot]) + count <= BLOCKS
            if count and possible:
                left -= count
            granted.append(not count or (possible and left >= 0))
        for slot, count in enumerate(lacking):
            if granted[slot]:
                self.pages[slot] += [self.free_pages.pop() for _ in range(count)]
        return granted

    def free(self, slots):
        for slot, pages in enumerate(self.pages):
            if slots[slot]:
                self.free_pages += pages
                pages.clear()

    def locate(self, slot, position, ratio):
        block = position // BLOCK_SIZE
        if not 0 <= slot < SLOTS or not 0 <= block < len(self.pages[slot]):
            return PADDING_PAGE, 0
        return self.pages[slot][block], position % BLOCK_SIZE // ratio

    def check(self, table):
        padded = [[*pages, *[PADDING_PAGE] * (BLOCKS - len(pages))] for pages in self.pages]
        np.testing.assert_array_equal(table.pages, padded)
        np.testing.assert_array_equal(table.num_blocks, list(map(len, self.pages)))
        np.testing.assert_array_equal(table.unclaimed[: table.num_unclaimed], self.free_pages)


operations = st.lists(
    st.one_of(
        st.tuples(st.just("claim"), st.lists(st.integers(-3, 100), min_size=SLOTS, max_size=SLOTS)),
        st.tuples(st.just("free"), st.lists(st.booleans(), min_size=SLOTS, max_size=SLOTS)),
    ),
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(operations)
def test_claims_and_frees_match_the_lists(operations):
    table, lists = make_table(), Lists()
    for name, values in operations:
        if name == "claim":
            table, granted = claim(table, ints(*values))
            assert granted.tolist() == lists.claim(values)
        else:
            table = free(table, jnp.array(values))
            lists.free(values)
        lists.check(table)


@pytest.mark.parametrize("ratio", [1, 4, 16])
def test_every_position_is_found_where_the_lists_have_it(ratio):
    table, lists = make_table(), Lists()
    num_tokens = [0, 17, 0, BLOCKS * BLOCK_SIZE]
    table, _ = claim(table, ints(*num_tokens))
    lists.claim(num_tokens)
    asked = [(s, p) for s in range(-2, SLOTS + 2) for p in range(-20, BLOCKS * BLOCK_SIZE + 20)]
    slots, positions = map(list, zip(*asked, strict=True))
    found = locate(table, ints(*slots), ints(*positions), ratio=ratio)
    expected = [lists.locate(*where, ratio) for where in asked]
    np.testing.assert_array_equal(np.stack(found, axis=1), expected)
    pages = {page for page, _ in expected} - {PADDING_PAGE}
    assert len(pages) == sum(-(-n // BLOCK_SIZE) for n in num_tokens)


@pytest.mark.parametrize("block_size", [128, 256])
@pytest.mark.parametrize("tokens", [0, 1, 127, 128, 129, 1_000_000])
def test_claimed_pages_cover_the_tokens_and_no_more(tokens, block_size):
    blocks = -(-tokens // block_size)
    table = init_block_table(num_slots=2, num_pages=8000, max_blocks=7813, block_size=block_size)
    table, granted = claim(table, ints(0, tokens))
    assert granted.tolist() == [True, True]
    assert table.num_blocks.tolist() == [0, blocks]
    ends = ints(0, max(tokens - 1, 0), blocks * block_size)
    pages = locate(table, ints(1, 1, 1), ends).page
    assert [page != PADDING_PAGE for page in pages.tolist()] == [tokens > 0, tokens > 0, False]


def test_out_of_pages_is_data_and_changes_nothing():
    table, granted = claim(make_table(num_pages=4), ints(0, 16, 64, 16))
    assert granted.tolist() == [True, True, False, False]
    assert table.num_blocks.tolist() == [0, 1, 0, 0]
    assert int(table.num_unclaimed) == 2
    table, granted = claim(table, ints(0, 16, 32, 0))
    assert granted.tolist() == [True, True, True, True]
    table, granted = claim(table, ints(0, 17, 1, 1))
    assert granted.tolist() == [True, False, True, False]
    assert table.num_blocks.tolist() == [0, 1, 2, 0]


def test_no_page_at_all():
    table, granted = claim(make_table(num_pages=1), ints(0, 1, 0, 0))
    assert granted.tolist() == [True, False, True, True]
    assert locate(table, ints(1), ints(0)).page.tolist() == [PADDING_PAGE]


def test_longest_request_and_padding_slot():
    table = make_table(num_pages=100)
    table, granted = claim(table, ints(1, BLOCKS * BLOCK_SIZE, BLOCKS * BLOCK_SIZE + 1, 2**31 - 1))
    assert granted.tolist() == [False, True, False, False]
    assert table.num_blocks.tolist() == [0, BLOCKS, 0, 0]


def test_a_claim_twice_is_a_claim_once():
    once, _ = claim(make_table(), ints(0, 20, 1, 0))
    twice, granted = claim(once, ints(0, 20, 1, 0))
    assert all(granted.tolist())
    jax.tree.map(np.testing.assert_array_equal, once, twice)


def test_in_a_scan():
    def step(table, length):
        table, granted = claim_blocks(table, jnp.full(SLOTS, length).at[PADDING_SLOT].set(0))
        return table, granted

    table, granted = jax.jit(lambda t: jax.lax.scan(step, t, jnp.arange(40, dtype=jnp.int32)))(
        make_table()
    )
    assert table.num_blocks.tolist() == [0, 3, 2, 2]  # 7 pages: slot 1 got the last
    assert granted.all(axis=1).tolist() == [True] * 33 + [False] * 7
    assert free(table, jnp.ones(SLOTS, bool)).num_unclaimed == PAGES - 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: claim_blocks(t, jnp.zeros(SLOTS + 1, jnp.int32)), ValueError, "num_tokens"),
        (lambda t: claim_blocks(t, jnp.zeros(SLOTS)), TypeError, "num_tokens"),
        (lambda t: free_blocks(t, jnp.zeros(SLOTS, jnp.int32)), TypeError, "slots"),
        (lambda t: locate_tokens(t, ints(1), ints(1, 2)), ValueError, "positions"),
        (lambda t: locate_tokens(t, jnp.zeros(1), ints(1)), TypeError, "slots"),
        (lambda t: locate_tokens(t, ints(1), ints(1), ratio=3), ValueError, "ratio"),
        (lambda t: locate_tokens(t, ints(1), ints(1), ratio=0), ValueError, "ratio"),
    ],
)
def test_invalid_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(make_table())


def test_numpy_sizes():
    sizes = {"num_slots": 2, "num_pages": 100, "max_blocks": 100, "block_size": 100}
    table = init_block_table(**{name: np.int8(size) for name, size in sizes.items()})
    table, granted = claim(table, ints(0, 9_900))
    assert granted.tolist() == [True, True] and table.num_blocks.tolist() == [0, 99]
    found = locate_tokens(table, ints(1), ints(9_899), ratio=np.int8(50))
    assert (found.page.tolist(), found.offset.tolist()) == ([99], [1])


@pytest.mark.parametrize("name", ["num_slots", "num_pages", "max_blocks", "block_size"])
def test_invalid_table_sizes(name):
    sizes = {"num_slots": 1, "num_pages": 1, "max_blocks": 1, "block_size": 1, name: 0}
    with pytest.raises(ValueError, match=name):
        init_block_table(**sizes)
