"""The commands `pool build` and `pool info`: a pool of texts in a file, and what one holds."""

import argparse
import contextlib
import functools
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jax_sa import traces
from jax_sa._files import check_regular_file
from jax_sa.cli.devices import start_jax
from jax_sa.cli.encoder import load_encoder
from jax_sa.cli.output import show
from jax_sa.cli.progress import ProgressBar
from jax_sa.cli.table import format_table
from jax_sa.pool import MAX_CAPACITY, SEPARATOR, Pool, get_pool_size, init_pool
from jax_sa.pool_insert import insert_texts
from jax_sa.storage import load, save

SHORTEST_BLOCK = 1024
"""Texts are padded to this length or the next power of two: few programs serve all."""


def add_parser(subparsers: Any) -> None:
    """Adds `pool` to the command line."""
    parser = subparsers.add_parser(
        "pool",
        help="make a pool of a corpus to draft from, or say what a pool holds",
        description="Makes a file of a pool, from which drafts may come beside a request's own "
        "text, or says what is in one.",
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    _add_build(actions)
    _add_info(actions)


def _add_build(actions: Any) -> None:
    parser = actions.add_parser(
        "build",
        help="make a pool of texts",
        description="Makes a pool of one group of texts, and saves it.",
    )
    parser.add_argument(
        "files",
        nargs="+",
        type=pathlib.Path,
        metavar="FILE",
        help=".npz or .jsonl: the texts of traces, as in `replay`; any other: one text",
    )
    parser.add_argument(
        "-o", "--output", type=pathlib.Path, required=True, metavar="FILE", help="the pool"
    )
    parser.add_argument(
        "--tokenizer",
        type=pathlib.Path,
        metavar="FILE",
        help="a Hugging Face tokenizer.json; default: the bytes of texts are their tokens",
    )
    parser.add_argument(
        "--capacity",
        type=int,
        metavar="C",
        help="tokens of the pool, of which each text takes one more than it has; of too many, the "
        "last stay (default: all of them)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=build)


def _add_info(actions: Any) -> None:
    parser = actions.add_parser(
        "info", help="say what a pool holds", description="Says what a file of a pool holds."
    )
    parser.add_argument("file", type=pathlib.Path, metavar="FILE", help="the pool")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=info)


def build(args: argparse.Namespace) -> int:
    """Runs `pool build`; ValueError or TypeError for bad input."""
    if args.capacity is not None:
        _check_capacity(args.capacity)
    encode = load_encoder("--tokenizer", args.tokenizer)
    with _replaced("--output", args.output) as write:
        texts = [text for path in args.files for text in _read(path, encode)]
        texts = [text for text in texts if len(text)]
        capacity = args.capacity or _fitting(texts)
        start_jax()
        pool, bar = init_pool(capacity), ProgressBar(len(texts), "texts")
        for text in texts:
            pool = _insert(pool, text)
            bar.advance(1)
        write(functools.partial(save, state=pool))
    _report(pool, args.json)
    return 0


def info(args: argparse.Namespace) -> int:
    """Runs `pool info`; ValueError for bad input."""
    start_jax()
    _report(load_pool("FILE", args.file), args.json)
    return 0


def load_pool(option: str, path: pathlib.Path) -> Pool:
    """The pool in a file; ValueError, naming the option, for anything else."""
    try:
        check_regular_file(path)
        pool = load(path)
    except OSError as error:
        raise ValueError(f"{option}: {path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None
    if not isinstance(pool, Pool):
        raise ValueError(f"{option}: {path}: expected a pool, got a state")
    return pool


def _check_capacity(capacity: int) -> None:
    try:
        get_pool_size(capacity)
    except ValueError as error:
        raise ValueError(f"--capacity: {error}") from None


def _fitting(texts: list[np.ndarray]) -> int:
    """The least capacity of a pool that holds all texts and their separators."""
    tokens = sum(len(text) + 1 for text in texts)
    if tokens > MAX_CAPACITY:
        raise ValueError(
            f"FILE: expected at most {MAX_CAPACITY} tokens, got {tokens}: a --capacity keeps the "
            "last of them"
        )
    return max(tokens, 1)


def _read(path: pathlib.Path, encode: Callable[[str], list[int]] | None) -> Iterator[np.ndarray]:
    """The texts of a file, int32[n] each."""
    if path.suffix in (".npz", ".jsonl"):
        yield from (trace.tokens for trace in traces.load(path, encode))
        return
    try:
        check_regular_file(path)
        content = path.read_bytes()
        tokens = list(content) if encode is None else encode(content.decode())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8, got other bytes at {error.start}") from None
    yield np.asarray(tokens, np.int32)


def _insert(pool: Pool, text: np.ndarray) -> Pool:
    text = text[-pool.capacity :]  # no more than that can stay
    width = max(SHORTEST_BLOCK, 1 << (len(text) - 1).bit_length())
    block = np.pad(text, (0, width - len(text)))[None]
    return _insert_block(pool, block, np.full(1, len(text), np.int32))


_insert_block = jax.jit(insert_texts, donate_argnames="pool")


@contextlib.contextmanager
def _replaced(
    option: str, path: pathlib.Path
) -> Iterator[Callable[[Callable[[pathlib.Path], None]], None]]:
    """Replaces a file by one that is written beside it: as a whole, or not at all.

    Yields a function that calls what it is given with the path to write to. That the folder takes
    files is known before the work.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(21, "Is a directory")
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    except OSError as error:
        raise ValueError(f"{option}: {path}: cannot be written: {error.strerror}") from None
    os.close(descriptor)
    beside = pathlib.Path(name)

    def write(into: Callable[[pathlib.Path], None]) -> None:
        try:
            into(beside)
            beside.chmod(0o666 & ~_umask())
            beside.replace(path)
        except OSError as error:
            raise ValueError(f"{option}: {path}: cannot be written: {error.strerror}") from None

    try:
        yield write
    finally:
        beside.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _report(pool: Pool, as_json: bool) -> None:
    groups = [_group_facts(pool, group) for group in range(pool.num_groups)]
    facts = {
        "capacity": pool.capacity,
        "num_groups": pool.num_groups,
        "bytes": pool.num_groups * get_pool_size(pool.capacity),
        "groups": groups,
    }
    if as_json:
        show(json.dumps(facts, indent=1))
        return
    size = f"{facts['bytes']:,} bytes: {facts['num_groups']} x {facts['capacity']:,} tokens"
    titles = [name.replace("_", " ") for name in groups[0]]
    show(f"{size}\n\n{format_table(titles, [list(group.values()) for group in groups])}")


def _group_facts(pool: Pool, group: int) -> dict[str, Any]:
    head = max(int(pool.head[group]), 0)
    standing = np.asarray(pool.ring[group])[: min(head, pool.capacity)]
    texts = int(np.count_nonzero(standing == SEPARATOR))
    table = np.asarray(pool.table[group])
    used = (table > max(head - pool.capacity, 0)) & (table < head)
    return {
        "group": group,
        "texts": texts,
        "tokens": len(standing) - texts,
        "index_used": f"{np.mean(used):.0%}",
        "status": int(pool.status[group]),
    }
