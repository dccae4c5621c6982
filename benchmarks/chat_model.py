"""A checkpoint, and prompts that it answers through a packed decoder, for several scripts."""

import argparse
import pathlib
import sys
from typing import Any, NamedTuple

import jax.numpy as jnp

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

from prompt_file import encode, read_prompts

from jax_sa.llama import checkpoint, paged
from jax_sa.llama.chat import ChatTemplate
from jax_sa.llama.config import Config
from jax_sa.llama.tokenizer import Tokenizer

PAGE_SIZE = 64
"""Tokens of a page."""


class ChatModel(NamedTuple):
    """What the options name."""

    config: Config
    params: Any
    prompts: list[list[int]]
    """The prompts' tokens, as the model reads them."""
    dtype: Any

    def init_cache(self, rows: int, size: int) -> paged.PackedCache:
        """An empty cache with pages for `rows` texts of `size` tokens."""
        pages = rows * -(-size // PAGE_SIZE)
        return paged.init_packed_cache(self.config, rows, pages, PAGE_SIZE, size, self.dtype)


def add_options(parser: argparse.ArgumentParser, *, prompts: str, dtype: str) -> None:
    """Adds the options that say which model and prompts; file and dtype are the defaults."""
    add = parser.add_argument
    add("--model", type=pathlib.Path, default=EXAMPLES / "checkpoint", help="checkpoint folder")
    add("--prompts", type=pathlib.Path, default=EXAMPLES / "prompts" / prompts)
    add("--chat", action="store_true", help="put prompts into the checkpoint's chat template")
    add("--dtype", choices=("float32", "bfloat16"), default=dtype)


def load(args: argparse.Namespace) -> ChatModel:
    """Loads the checkpoint and reads the prompts; OSError or ValueError of one line."""
    dtype = jnp.dtype(args.dtype)
    config, params = checkpoint.load(args.model, dtype, None)
    tokenizer = Tokenizer(args.model)
    chat = ChatTemplate(args.model) if args.chat else None
    prompts = [encode(prompt, tokenizer, chat) for prompt in read_prompts(args.prompts)]
    return ChatModel(config, params, prompts, dtype)
