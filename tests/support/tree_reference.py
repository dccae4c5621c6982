"""Trees of drafts once more, slow and obvious: every prefix of every candidate, in a dictionary."""

import bisect
import dataclasses
import fractions
import itertools
import math

from reference import WINDOW, Match, draft

WHOLE, HALF = fractions.Fraction(1), fractions.Fraction(1, 2)
OWN = 1
STEP = fractions.Fraction(1, 256)  # of factors


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A draft of full length, how long its match is, and the share of the factor that it gets."""

    tokens: list
    match_length: int
    source: int
    share: fractions.Fraction

    def cut(self, factor):
        return self.tokens[: math.ceil(factor * self.share * self.match_length)]


def own_candidates(
    automaton, depth, min_match=1, max_match=None, occurrence="recent", periodic=True
):
    other = {"recent": "first", "first": "recent"}[occurrence]
    best = automaton.lookup(min_match, max_match, occurrence)
    matches = [
        (best, WHOLE),
        (_next_match(automaton, best, min_match, occurrence), HALF),
        (automaton.lookup(min_match, max_match, other), HALF),
    ]
    return [
        Candidate(draft(automaton.text, match, depth, periodic=periodic), match.length, OWN, share)
        for match, share in matches
    ]


def _next_match(automaton, best, min_match, occurrence):
    ends = automaton.recent_end if occurrence == "recent" else automaton.first_end
    for node in itertools.islice(automaton.repeated_suffixes(), WINDOW):
        length = automaton.length[node]
        if min_match <= length < best.length and ends[node] != best.end:
            return Match(length, ends[node])
    return Match(0, 0)


def tree(candidates, max_nodes, draft_factor=None):
    """The nodes in order: (token, parent, depth, match length, source)."""
    if draft_factor is not None:
        most = fractions.Fraction(draft_factor)
        candidates = [dataclasses.replace(c, tokens=c.cut(most)) for c in candidates]
    steps = range(1, 4 * max_nodes * STEP.denominator + 1)  # the last cuts nothing
    first = bisect.bisect_left(
        steps, max_nodes, hi=len(steps) - 1, key=lambda n: len(_join(candidates, n * STEP))
    )
    return _join(candidates, steps[first] * STEP)[:max_nodes]


def _join(candidates, factor):
    nodes, places = [], {(): -1}
    for candidate in candidates:
        tokens = candidate.cut(factor)
        for depth in range(1, len(tokens) + 1):
            path = tuple(tokens[:depth])
            if path not in places:
                parent = places[path[:-1]]
                places[path] = len(nodes)
                nodes.append(
                    (tokens[depth - 1], parent, depth, candidate.match_length, candidate.source)
                )
    return nodes
