"""The text that a model writes, shown as it grows, drafted tokens that it confirmed highlighted."""

import os
import sys
import time
from collections.abc import Callable

import numpy as np
from comparison import figures, heading, percent
from engine import Engine, Mode, Result, Text, results

HIGHLIGHT, PLAIN = "\033[30;42m", "\033[0m"


class Writer:
    """One row's text, piece by piece."""

    def __init__(self, decode: Callable[[list[int]], str], colour: bool):
        self._decode, self._colour = decode, colour
        self._tokens: list[int] = []
        self._shown = 0

    def write(self, tokens: list[int]) -> str:
        """The piece that a step adds to the text: all its tokens but the last were drafted."""
        drafted, own = self._piece(tokens[:-1]), self._piece(tokens[-1:])
        return (f"{HIGHLIGHT}{drafted}{PLAIN}" if drafted and self._colour else drafted) + own

    def _piece(self, tokens: list[int]) -> str:
        self._tokens += tokens
        # The bytes of a character may be spread over tokens: half of one waits for the rest.
        text = self._decode(self._tokens).removesuffix("\ufffd")
        piece, self._shown = text[self._shown :], max(self._shown, len(text))
        return piece


def show(engine: Engine, mode: Mode) -> None:
    """Prints the text after each prompt, for a batch of one as it comes; a summary on stderr."""
    print(f"{mode.name}: compiling", file=sys.stderr, flush=True)
    begun = time.perf_counter()
    written = [result for batch in engine.batches() for result in _show_batch(engine, mode, batch)]
    seconds = time.perf_counter() - begun
    its = figures(written, seconds)
    accepted = percent(its["acceptance_rate"])
    drafts = "nothing drafted" if accepted == "-" else f"{accepted} of drafted tokens accepted"
    print(
        f"\n{mode.name}: {its['tokens']} tokens, {its['tokens_per_step']:.2f} per step, {drafts}\n"
        f"{seconds:.1f} s with compilation",
        file=sys.stderr,
    )


def _show_batch(engine: Engine, mode: Mode, batch: list[Text]) -> list[Result]:
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    headings = ["\n" + heading(text.prompt.group, text.prompt.text) for text in batch]
    writers = [Writer(engine.tokenizer.decode, colour) for _ in batch]
    pieces: list[list[str]] = [[] for _ in batch]
    live = len(batch) == 1
    if live:
        print(headings[0], flush=True)
    for generation, emitted in engine.stream(mode, batch):  # noqa: B007  the last is kept
        tokens, lengths = np.asarray(emitted.tokens), np.asarray(emitted.length)
        for row, writer in enumerate(writers):
            if lengths[row]:
                pieces[row].append(writer.write(tokens[row, : lengths[row]].tolist()))
                if live:
                    print(pieces[row][-1], end="", flush=True)
    for above, text in zip(headings, pieces, strict=True):
        print("" if live else f"{above}\n{''.join(text)}")
    return results(generation, len(batch))
