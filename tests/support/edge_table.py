"""Where the edges of a slot are searched for, written once more, as an attacker would."""

import itertools

import numpy as np

BLOCK = 8
ANY_LENGTH, WIDEST_RANGE = 31, 25


def mix(x):
    with np.errstate(over="ignore"):
        x = np.asarray(x, np.uint32)
        x = (x ^ x >> 15) * np.uint32(0xC2B2AE3D)
        return (x ^ x >> 13) * np.uint32(0x27D4EB2F)


def edge_keys(seed, ends, tokens):
    """uint32: edges of equal keys and lengths are searched for in the same entries."""
    with np.errstate(over="ignore"):
        mixed = mix(np.int64(seed) & 0xFFFFFFFF)
        by_end = np.asarray(ends).astype(np.uint32) * (np.uint32(0x9E3779B1) ^ mixed << 1)
        by_token = np.asarray(tokens).astype(np.uint32) * (np.uint32(0x85EBCA77) ^ mix(mixed) << 1)
        return by_end ^ by_token


def searched_entries(key, length, num_entries):
    """The entries in which an edge may be, in the order in which a search passes them."""
    entries = num_entries // BLOCK * BLOCK
    code = int(np.float32(length + 1).view(np.uint32)) - 0x3F800000
    for shift in itertools.chain((ANY_LENGTH, 28), range(WIDEST_RANGE, -entries, -1)):
        bits = max(shift, 0)
        part = (code >> bits) + (1 << ANY_LENGTH - bits) - 1
        mixed = int(mix(int(key) ^ part * 0x9E3779B1 & 0xFFFFFFFF))
        home = ((mixed * entries >> 32) + BLOCK * (bits - shift)) % entries
        yield from (home // BLOCK * BLOCK + (home + i) % BLOCK for i in range(BLOCK))


def entries_passed(edges, seed, entry):
    """Of the edge in an entry of int32[E, 4], the entries that a search for it passes before it."""
    end, token, _, length = map(int, edges[entry])
    searched = searched_entries(edge_keys(seed, end - 1, token), length, len(edges))
    return list(itertools.takewhile(lambda other: other != entry, searched))
