"""Texts to try the automaton on: random, extreme, and real."""

import inspect
import re
import string
import textwrap

import numpy as np

VOCABULARIES = (1, 2, 3, 300, 128_256)


def random_text(vocabulary, length, seed=0):
    return np.random.default_rng(seed).integers(0, vocabulary, length).tolist()


def periodic_text(period, length):
    return [i % period for i in range(length)]


def fibonacci_word(length):
    shorter, word = [1], [0]
    while len(word) < length:
        shorter, word = word, word + shorter
    return word[:length]


def most_states(length):
    """a b b ... b: the 2n - 1 states that no text of n >= 3 tokens exceeds."""
    return [0] + [1] * (length - 1)


def most_edges(length):
    """a b b ... b c: the 3n - 4 edges that no text of n >= 4 tokens exceeds."""
    return [0] + [1] * (length - 2) + [2]


def nested_repeats(words):
    """All suffixes of a text, the shortest first: many nodes whose first end is where it ended."""
    text = list(range(words))
    for length in range(1, words):
        text += [words + length, *range(words - length, words)]
    return text


def redirected_run(length):
    """The edges of more nodes than the window holds lead to a clone at once."""
    return [1] * length + [2, 0] + [1] * (length - 1) + [2, 1, 1, 2]


def source_code(length=None):
    """The tokens of a few standard library modules, numbered in order of appearance."""
    source = "".join(inspect.getsource(module) for module in (textwrap, string, inspect, re))
    ids = {}
    words = re.findall(r"\w+|\s+|[^\w\s]", source)
    return [ids.setdefault(word, len(ids)) for word in words][:length]


def edge_tokens(length, seed=0):
    """A text of int32's extremes: 0, 1, -1, the smallest and the largest."""
    tokens = np.array([0, 1, -1, -(2**31), 2**31 - 1])
    return np.random.default_rng(seed).choice(tokens, length).tolist()


SMALL = {
    **{f"random-{v}": random_text(v, 200) for v in VOCABULARIES},
    "two-letters-long": random_text(2, 600, seed=1),
    "period-2": periodic_text(2, 150),
    "period-7": periodic_text(7, 200),
    "period-then-break": [*periodic_text(3, 120), 9, *periodic_text(3, 60), 8, 9],
    "run-break-run": [5] * 100 + [6] + [5] * 40 + [6, 5, 5, 5, 7],
    "fibonacci": fibonacci_word(300),
    "most-states": most_states(150),
    "most-edges": most_edges(150),
    "nested-repeats": nested_repeats(40),
    "redirected-run": redirected_run(120),
    "edge-tokens": edge_tokens(200),
    "source-code": source_code(400),
}
