"""Texts whose single steps are timed: such as people write, and such as are made to be slow."""

import json
import re

import numpy as np
from source_tokens import source_tokens

CONTEXT, STRIDE = 32_768, 4096
LENGTH = 64 * STRIDE + CONTEXT


def numbered(words):
    ids = {}
    return [ids.setdefault(word, len(ids)) for word in words]


def records(random):
    """JSON objects, some with long arrays of zeros."""
    words = []
    while len(words) < LENGTH:
        value = {
            "id": int(random.integers(10_000)),
            "name": str(random.choice(["ann", "bob", "eve", "mallory"])),
            "tags": random.choice(list("abcdef"), int(random.integers(5))).tolist(),
            "values": [0] * int(random.integers(60)),
            "nested": {"x": float(random.random()), "ok": bool(random.random() < 0.5)},
        }
        words += re.findall(r"\w+|\s+|[^\w\s]", json.dumps(value) + "\n")
    return numbered(words)


def zipf(random, words=18_750):
    weights = 1 / np.arange(1, words + 1)
    return random.choice(words, LENGTH, p=weights / weights.sum())


def many_followers():
    """Twelve tokens with ever another one after them; then the last few of them after others."""
    text, shared = [], list(range(12))
    for i in range(CONTEXT // 20):
        text += [*shared, 100 + i]
    while len(text) < CONTEXT:
        for length in range(11, 0, -1):
            text += [50, *shared[-length:], 60_000 + len(text)]
    return text


def nested_repeats():
    """A text once more from each of its tokens on, so that many suffixes end where it first did."""
    words = int((2 * CONTEXT) ** 0.5)
    text = list(range(words))
    for length in range(1, words):
        text += [words + length, *range(words - length, words)]
    return text + list(range(CONTEXT))


def ended_runs():
    """Runs of one token, each ended by another."""
    return ([1] * 999 + [2] + [1] * 600 + [3]) * (CONTEXT // 1600 + 1)


def step_texts():
    """By name: (tokens, how far apart the slots begin in them)."""
    random = np.random.default_rng(0)
    texts = {
        "source code": (source_tokens(LENGTH), STRIDE),
        "JSON": (records(random), STRIDE),
        "18,750 words": (zipf(random), STRIDE),
        "one token": ([7] * LENGTH, STRIDE),
        "random": (random.integers(0, 1000, LENGTH), STRIDE),
        "many followers": (many_followers(), 0),
        "nested repeats": (nested_repeats(), 0),
        "ended runs": (ended_runs(), 0),
    }
    return {name: (np.asarray(text, np.int32), stride) for name, (text, stride) in texts.items()}
