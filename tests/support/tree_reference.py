"""Trees of drafts once more, slow and obvious: every prefix of every candidate, in a dictionary."""

import bisect
import dataclasses
import fractions
import itertools
import math

from pool_reference import INT32_MAX, NO_HIT
from reference import WINDOW, Match, draft

WHOLE, HALF = fractions.Fraction(1), fractions.Fraction(1, 2)
OWN, POOL, NEURAL = 1, 2, 3
NEURAL_MATCH_LENGTH = 3
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


def candidates(
    automaton,
    depth,
    group=None,
    min_match=1,
    max_match=None,
    occurrence="recent",
    periodic=True,
    neural=(),
    threshold=4,
):
    """In their order; `group` is the part of a pool that the text may see."""
    other = {"recent": "first", "first": "recent"}[occurrence]
    best = automaton.lookup(min_match, max_match, occurrence)
    found = second = NO_HIT
    if group is not None:
        capped = INT32_MAX if max_match is None else max_match
        found, second = group.lookup(automaton.text, min_match, capped)

    def own(match, share):
        tokens = draft(automaton.text, match, depth, periodic=periodic)
        return Candidate(tokens, match.length, OWN, share)

    def pooled(hit, share):
        tokens = group.draft(hit, depth) if hit.length else []
        return Candidate(tokens, hit.length, POOL, share / 2)

    if found.length > best.length:
        leader, follower = pooled(found, WHOLE), own(best, HALF)
    else:
        leader, follower = own(best, WHOLE), pooled(found, HALF)
    leaders = [leader]
    if neural:
        known = list(itertools.takewhile(lambda token: token >= 0, neural))
        expected = Candidate(known[:depth], NEURAL_MATCH_LENGTH, NEURAL, WHOLE)
        agree = itertools.takewhile(
            lambda pair: pair[0] == pair[1], zip(expected.tokens, leader.tokens, strict=False)
        )
        leads = bool(known) and leader.match_length + len(list(agree)) < threshold
        leaders = [expected, leader] if leads else [leader, expected]
    return [
        *leaders,
        follower,
        pooled(second, HALF),
        own(_next_match(automaton, best, min_match, occurrence), HALF),
        own(automaton.lookup(min_match, max_match, other), HALF),
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
                match = 0 if candidate.source == NEURAL else candidate.match_length
                nodes.append((tokens[depth - 1], parent, depth, match, candidate.source))
    return nodes
