"""Trees of drafts once more, slow and obvious: every prefix of every candidate, in a dictionary.

And followers: of all logits, sorted.
"""

import bisect
import dataclasses
import fractions
import itertools
import math

from pool_reference import INT32_MAX, NO_HIT
from reference import WINDOW, Match, draft

WHOLE, HALF = fractions.Fraction(1), fractions.Fraction(1, 2)
OWN, POOL, NEURAL, FOLLOWER = 1, 2, 3, 4
NEURAL_MATCH_LENGTH = 3
STEP = fractions.Fraction(1, 256)  # of factors
NUM_FOLLOWERS, MOST_GROWN, GROWTH_FACTOR = 8, 32, 4
SHARES = [360, 90, 50, 32, 27, 17, 16, 13]  # in a thousand: how often a follower is what comes


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


def tree(candidates, max_nodes, draft_factor=None, growth=None):
    """The nodes in order: (token, parent, depth, match length or rank, source).

    `growth`: the followers of each token, the text's last token, and the depth of a tree at most.
    """
    if growth is not None:
        draft_factor = min(GROWTH_FACTOR, math.inf if draft_factor is None else draft_factor)
    nodes = _fitting_tree(candidates, max_nodes, draft_factor)
    return nodes if growth is None else grow(nodes, max_nodes, *growth)


def _fitting_tree(candidates, max_nodes, draft_factor):
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


def grow(nodes, max_nodes, followers, last, depth):
    """The nodes, and behind them followers: those of the first shape that there is room for."""
    nodes, tried = list(nodes), min(max_nodes - len(nodes), MOST_GROWN)
    by_depth = sorted(growth_shape()[:tried], key=len)
    places = {(): -1}
    for place, (token, parent, *_) in enumerate(nodes):
        (above,) = [path for path, number in places.items() if number == parent]
        places[(*above, token)] = place
    found = {(): ()}  # the tokens that lead to the follower with these ranks
    for ranks in by_depth:
        path = found.get(ranks[:-1])
        if path is None or len(ranks) > depth:
            continue
        before = path[-1] if path else last
        known = followers[before] if 0 <= before < len(followers) else []
        if ranks[-1] >= len(known) or known[ranks[-1]] < 0:
            continue
        if known[ranks[-1]] in known[: ranks[-1]]:
            continue
        found[ranks] = path = (*path, int(known[ranks[-1]]))
        if path not in places:
            places[path] = len(nodes)
            nodes.append((path[-1], places[path[:-1]], len(path), 1 + ranks[-1], FOLLOWER))
    return nodes


def growth_shape():
    """Which follower of which, of which...: as ranks; the best chance first."""
    chances = {(): 10**9}
    shape = []
    while len(shape) < MOST_GROWN:
        possible = []
        for number, ranks in enumerate([(), *shape]):
            tried = sum(other[:-1] == ranks for other in shape)
            if tried < NUM_FOLLOWERS:
                chance = chances[ranks] * SHARES[tried] // 1000
                possible.append((-chance, number, (*ranks, tried)))
        chance, _, ranks = min(possible)
        chances[ranks] = -chance
        shape.append(ranks)
    return shape


def followers_of(logits):
    """The likeliest tokens by a list of logits; -1 where there are too few that are possible."""
    possible = [token for token, logit in enumerate(logits) if logit > -math.inf]
    best = sorted(possible, key=lambda token: (-logits[token], token))[:NUM_FOLLOWERS]
    return best + [-1] * (NUM_FOLLOWERS - len(best))
