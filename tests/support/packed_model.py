"""The toy model with the packed contract, its text in pages or in rows.

As `toy_model`, in integers, so that no logit depends on the size or the order of a block.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import toy_model
from toy_model import GARBAGE, MODULUS, SURPRISE, VOCABULARY

import jax_sa
from jax_sa.cache_schema import BlockTable, init_block_table


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowCache:
    """int32[B, C] what the model has read of each row."""

    tokens: jax.Array

    def move(self, start, path):
        return RowCache(jax_sa.move_entries(self.tokens, start, path, axes=(0, 1)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PagedCache:
    """int32[pages, S] what the model has read, and whose pages these are."""

    tokens: jax.Array
    block_table: BlockTable

    def move(self, start, path):
        pages = self.block_table.pages[1:]
        moved = jax_sa.move_entries(self.tokens, start, path, axes=(0, 1), pages=pages)
        return dataclasses.replace(self, tokens=moved)


def row_cache(rows, capacity):
    return RowCache(jnp.full((rows, capacity), GARBAGE, jnp.int32))


def paged_cache(rows, pages, page_size, max_blocks):
    """`pages` pages besides the padding one."""
    table = init_block_table(
        num_slots=rows + 1, num_pages=pages + 1, max_blocks=max_blocks, block_size=page_size
    )
    return PagedCache(jnp.full((pages + 1, page_size), GARBAGE, jnp.int32), table)


def model(params, tokens, rows, positions, cache, tree=None):
    """Logits of all places. With a tree, each token reads its path as a text of its own."""
    if isinstance(cache, RowCache):
        written = cache.tokens.at[rows, positions].set(tokens, mode="drop")
        cache, texts = RowCache(written), written
    else:
        table = cache.block_table
        num_rows, size = table.num_blocks.shape[0] - 1, table.block_size
        page = table.pages.at[rows + 1, positions // size].get(mode="fill", fill_value=0)
        page = jnp.where((rows < num_rows) & (page > 0), page, cache.tokens.shape[0])
        written = cache.tokens.at[page, positions % size].set(tokens, mode="drop")
        cache = dataclasses.replace(cache, tokens=written)
        texts = written[table.pages[1:]].reshape(num_rows, -1)
    text = texts.at[rows].get(mode="fill", fill_value=0)  # [T, C]
    place = jnp.arange(1, text.shape[1] + 1, dtype=jnp.int32)[None]
    seen = place <= positions[:, None] + 1
    if tree is None:
        before = jnp.take_along_axis(text, jnp.maximum(positions - 1, 0)[:, None], axis=1)
    else:
        block = jax.tree.map(lambda x: x[:, None], tree)  # rows of one token each
        before, seen, position = toy_model.read_paths(text, block)
        place, seen, positions = 1 + position[:, 0], seen[:, 0], tree.positions
    terms = jnp.where(seen, (text + 1) * (place * place % 97), 0)
    checksum = jnp.sum(terms, axis=1) % MODULUS
    ruled = params[jnp.where(positions > 0, before[:, 0], 0) % VOCABULARY, tokens % VOCABULARY]
    chosen = jnp.where(checksum % SURPRISE == 0, checksum % VOCABULARY, ruled)
    return jax.nn.one_hot(chosen, VOCABULARY), cache


def lazy_model(params, tokens, rows, positions, cache, tree=None):
    """Logits of the places that are read."""
    logits, cache = model(params, tokens, rows, positions, cache, tree)
    return lambda places: logits[places], cache


greedy = toy_model.greedy


def make_prompts(count, longest, seed=0):
    """int32[count, longest] random prompts and their lengths; tokens beyond them are 3."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, longest + 1, count)
    prompts = random.integers(0, VOCABULARY, (count, longest))
    prompts = np.where(np.arange(longest)[None] < lengths[:, None], prompts, 3)
    return jnp.asarray(prompts, jnp.int32), jnp.asarray(lengths, jnp.int32)


def all_greedy(prompts, lengths, limits, stop_tokens=()):
    """The answers of plain greedy decoding."""
    requests = zip(prompts.tolist(), lengths.tolist(), limits.tolist(), strict=True)
    return [greedy(prompt[:length], limit, stop_tokens) for prompt, length, limit in requests]


def answers(done):
    """The answers as lists."""
    return [row[:n] for row, n in zip(done.tokens.tolist(), done.lengths.tolist(), strict=True)]
