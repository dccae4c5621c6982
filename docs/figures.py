"""Draws the figures of concepts.md from states: `python docs/figures.py`, into docs/images.

Needs `pip install jax_sa[plot]`.
"""

import argparse
import pathlib

import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import jax_sa
from jax_sa.plot import draw_automaton, draw_draft, draw_window

SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "jax_sa", "font.family": "sans-serif"}


def state_of(text):
    """A state of one slot that holds a text, a token for each of its bytes."""
    tokens = jnp.array([list(text.encode())], jnp.int32)
    return jax_sa.extend(jax_sa.init(1, 64), tokens, jnp.array([len(text)], jnp.int32))


def automaton():
    """The automaton of one short text."""
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    draw_automaton(axes, jax_sa.inspect_slot(state_of("abcbc"), 0), name=chr)
    return figure


def window():
    """The window of a text, one token after the other."""
    text = "abcabxabcab"
    steps = range(5, len(text) + 1)
    figure, rows = plt.subplots(len(steps), figsize=(5, 7), layout="constrained")
    for axes, step in zip(rows, steps, strict=True):
        found = jax_sa.inspect_slot(state_of(text[:step]), 0)
        draw_window(axes, text[:step], found.lengths[found.window].tolist())
        axes.set(xlim=(0, len(text)), ylim=(-1, 1))
    return figure


def draft():
    """A text and what is drafted after it."""
    text = "for i in a: n += i; for j in a: n"
    found = jax_sa.lookup(state_of(text), max_draft=6)
    drafted = [chr(token) for token in found.tokens[0, : int(found.length[0])].tolist()]
    figure, axes = plt.subplots(figsize=(8, 0.6), layout="constrained")
    match = {"match_length": int(found.match_length[0]), "match_end": int(found.match_end[0])}
    draw_draft(axes, text, drafted, **match)
    return figure


FIGURES = {"automaton": automaton, "window": window, "draft": draft}


def main():
    """Draw all figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    folder = pathlib.Path(__file__).parent / "images"
    parser.add_argument("folder", nargs="?", type=pathlib.Path, default=folder)
    args = parser.parse_args()
    with plt.rc_context(SETTINGS):
        for name, draw in FIGURES.items():
            figure = draw()
            figure.savefig(args.folder / f"{name}.svg", metadata={"Date": None})
            plt.close(figure)


if __name__ == "__main__":
    main()
