"""The ops once more, twice: a textbook automaton, and brute force to judge the automaton by.

Both are slow and obvious on purpose. Neither shares anything with the library.
"""

import dataclasses
import itertools
import math

WINDOW = 32


@dataclasses.dataclass(frozen=True)
class Match:
    length: int
    end: int


NO_MATCH = Match(0, 0)


class Automaton:
    """The suffix automaton of Blumer et al. (1985) as every textbook builds it.

    Nodes are numbered like the library's: 0 the root, i the text's first i tokens, and
    `capacity + 1 + j` the j-th clone.
    """

    def __init__(self, capacity):
        self.capacity = capacity
        self.text = []
        self.edges = {0: {}}
        self.link = {0: None}
        self.length = {0: 0}
        self.first_end = {0: 0}
        self.recent_end = {0: 0}  # before the text's own end
        self.num_clones = 0

    def append(self, token):
        for node in itertools.islice(self.repeated_suffixes(), WINDOW):
            self.recent_end[node] = len(self.text)
        last = len(self.text)
        self.text.append(token)
        new = len(self.text)
        self.edges[new] = {}
        self.length[new] = self.first_end[new] = self.recent_end[new] = new
        node = last
        while node is not None and token not in self.edges[node]:
            self.edges[node][token] = new
            node = self.link[node]
        if node is None:
            self.link[new] = 0
            return
        target = self.edges[node][token]
        if self.length[target] != self.length[node] + 1:
            target = self._clone(target, node, token)
        self.link[new] = target

    def _clone(self, original, node, token):
        clone = self.capacity + 1 + self.num_clones
        self.num_clones += 1
        self.edges[clone] = dict(self.edges[original])
        self.length[clone] = self.length[node] + 1
        self.first_end[clone] = self.first_end[original]
        self.recent_end[clone] = self.recent_end[original]
        self.link[clone] = self.link[original]
        self.link[original] = clone
        while node is not None and self.edges[node].get(token) == original:
            self.edges[node][token] = clone
            node = self.link[node]
        return clone

    def repeated_suffixes(self):
        """The nodes of the text's suffixes that occurred before, longest first."""
        node = self.link[len(self.text)]
        while node:  # neither the root, 0, nor what the root links to
            yield node
            node = self.link[node]

    def lookup(self, min_match=1, max_match=None, occurrence="recent"):
        longest = next(self.repeated_suffixes(), 0)
        length = self.length[longest]
        if max_match is not None:
            length = min(length, max_match)
        if length == 0 or length < min_match:
            return NO_MATCH
        nodes = itertools.takewhile(
            lambda node: self.length[node] >= length, self.repeated_suffixes()
        )
        if occurrence == "first":
            *_, shortest = nodes
            return Match(length, self.first_end[shortest])
        *_, shortest = itertools.islice(nodes, WINDOW)
        return Match(length, self.recent_end[shortest])


def draft(text, match, max_draft, draft_factor=None, periodic=True):
    """The tokens after the match's end, going round from the text's end to there if periodic."""
    if match.length == 0:
        return []
    wanted = max_draft
    if draft_factor is not None:
        wanted = min(wanted, math.ceil(draft_factor * match.length))
    following = text[match.end :]
    if not periodic:
        return following[:wanted]
    return [following[i % len(following)] for i in range(wanted)]


def earlier_ends(text, length):
    """Ends of the earlier occurrences of the text's suffix of this length, ascending."""
    suffix = text[len(text) - length :]
    return [end for end in range(length, len(text)) if text[end - length : end] == suffix]


def matches_by_distance(text):
    """For k = 1, 2, ...: the longest suffix that also ends k tokens before the text's end."""
    matches = []
    for k in range(1, len(text) + 1):
        length = 0
        while length + k < len(text) and text[-1 - length] == text[-1 - length - k]:
            length += 1
        matches.append(length)
    return matches


def longest_repeated_suffix(text):
    length = 0
    while length + 1 < len(text) and earlier_ends(text, length + 1):
        length += 1
    return length


def exact_lookup(text, min_match=1, max_match=None, occurrence="recent"):
    """What a lookup finds that forgets no end, by brute force."""
    length = longest_repeated_suffix(text)
    if max_match is not None:
        length = min(length, max_match)
    if length == 0 or length < min_match:
        return NO_MATCH
    ends = earlier_ends(text, length)
    return Match(length, ends[0] if occurrence == "first" else ends[-1])


def match_after(text, added, min_match=1, max_match=None, occurrence="recent"):
    """The longest suffix of the text with `added` behind it that occurs in the text alone."""
    whole = text + added
    longest = len(whole) if max_match is None else min(max_match, len(whole))
    for length in range(longest, min_match - 1, -1):
        suffix = whole[len(whole) - length :]
        ends = [n for n in range(length, len(text) + 1) if text[n - length : n] == suffix]
        if ends:
            return Match(length, ends[0] if occurrence == "first" else ends[-1])
    return NO_MATCH


def classes_of_longer_suffixes(text, length):
    """How many nodes hold the repeated suffixes longer than this one's own node does.

    Suffixes that occur at the same ends share a node.
    """
    own = earlier_ends(text, length)
    longer = range(length + 1, longest_repeated_suffix(text) + 1)
    return len({tuple(ends) for n in longer if (ends := earlier_ends(text, n)) != own})


def kept_recent_end(text, length):
    """The most recent earlier end at which the suffix was among the WINDOW longest repeated ones.

    Where it never was, it is the first end.
    """
    ends = earlier_ends(text, length)
    for end in reversed(ends[1:]):
        if classes_of_longer_suffixes(text[:end], length) < WINDOW:
            return end
    return ends[0]
