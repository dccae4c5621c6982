"""The pool once more, slow and obvious, and brute force to judge it by.

All that was ever inserted is kept in a list, and the index is a dictionary. Nothing is shared with
the library but the numbers of its hash.
"""

import dataclasses
import math

import numpy as np

LENGTHS = (1, 2, 3, 5, 8, 16)
MAX_MATCH = 32
SEPARATOR = -(2**31)
INT32_MAX = 2**31 - 1


def mix(x):
    x ^= x >> 15
    x = x * 0xC2B2AE3D % 2**32
    x ^= x >> 13
    x = x * 0x27D4EB2F % 2**32
    return x


def term(token):
    return mix((token * 0x85EBCA77 + 0x27D4EB2F) % 2**32)


def place(gram, following, capacity):
    """The entry of an n-gram with a token after it."""
    value = 0
    for token in reversed(gram):
        value = (value * 0x9E3779B1 + term(token)) % 2**32
    return 2 * (mix(value) * math.ceil(capacity / 4) >> 32) + branch(following)


def branch(following):
    return term(following) >> 31


@dataclasses.dataclass(frozen=True)
class Hit:
    length: int
    end: int  # position of the token after the match


NO_HIT = Hit(0, 0)


class Group:
    """One group. `start` is the position of the first token that will be inserted."""

    def __init__(self, capacity, start=0):
        self.capacity = capacity
        self.start = start
        self.log = []
        self.entries = {}
        self.shift = 0
        self.status = 0

    @property
    def head(self):
        return self.start + len(self.log) - self.shift

    def insert(self, texts):
        """The texts of one call, in the order of its rows."""
        texts = [text for text in texts if text]
        added = sum(len(text) + 1 for text in texts)
        if self.head + added > INT32_MAX:
            self.shift_by((self.head + added) // self.capacity * self.capacity - self.capacity)
        oldest = self.head + added - self.capacity
        for text in texts:
            before = []
            for token in [*text, SEPARATOR]:
                position = self.head
                self.log.append(token)
                if token == SEPARATOR:
                    before = []
                    continue
                for n in LENGTHS:
                    if n <= len(before) and position >= oldest:
                        key = n, place(before[-n:], token, self.capacity)
                        self.entries[key] = max(self.entries.get(key, 0), position)
                before.append(token)

    def shift_by(self, shift):
        self.shift += shift
        self.entries = {key: end - shift for key, end in self.entries.items() if end > shift}

    def token(self, position):
        """The token that stands at a position; the separator where none does."""
        index = position + self.shift - self.start
        stands = self.head - self.capacity <= position < self.head and index >= 0
        return self.log[index] if stands else SEPARATOR

    def true_match(self, text, end):
        """How many tokens before a position are the text's last ones."""
        length = 0
        while length < min(MAX_MATCH, len(text)):
            token = self.token(end - 1 - length)
            if token == SEPARATOR or token != text[-1 - length]:
                break
            length += 1
        return 0 if self.token(end) == SEPARATOR else length

    def hits(self, text):
        """For each n-gram that ends the text, where its two entries lead."""
        for n in LENGTHS:
            if n > len(text):
                continue
            for following in (0, 1):
                slot = place(text[-n:], SEPARATOR, self.capacity) // 2 * 2 + following
                end = self.entries.get((n, slot), 0)
                length = self.true_match(text, end) if end > 0 else 0
                if length >= n:
                    yield Hit(length, end)

    def lookup(self, text, min_match=1, max_match=INT32_MAX):
        """The best match, and the best one with another token after it."""
        hits = [
            Hit(min(hit.length, max_match), hit.end)
            for hit in self.hits(text)
            if hit.length >= min_match
        ]
        best = self.best(hits)
        others = [hit for hit in hits if self.token(hit.end) != self.token(best.end)]
        return best, self.best(others)

    @staticmethod
    def best(hits):
        return max(hits, key=lambda hit: (hit.length, hit.end), default=NO_HIT)

    def draft(self, hit, max_draft, draft_factor=math.inf):
        """The tokens after a match, up to the end of its text."""
        wanted = min(max_draft, draft_factor / 2 * hit.length)
        tokens = []
        while len(tokens) < wanted and self.token(hit.end + len(tokens)) != SEPARATOR:
            tokens.append(self.token(hit.end + len(tokens)))
        return tokens

    def arrays(self):
        """Ring, head and table as the library keeps them, where the log has filled the ring."""
        ring = np.zeros(self.capacity, np.int32)
        for position in range(self.start - self.shift, self.head):
            ring[position % self.capacity] = self.token(position)
        table = np.zeros((len(LENGTHS), 2 * math.ceil(self.capacity / 4)), np.int32)
        for (n, slot), end in self.entries.items():
            table[LENGTHS.index(n), slot] = end
        return ring, self.head, table


def brute_force(group, text):
    """The best match if no hashes collided: of each n-gram and branch the most recent place."""
    found = {}
    for end in range(max(1, group.head - group.capacity), group.head):
        length = group.true_match(text, end)
        for n in LENGTHS:
            if length >= n:
                found[n, branch(group.token(end))] = Hit(length, end)
    return Group.best(found.values())
