"""Brute force judges the reference, after every token."""

import pytest
import reference
import texts


@pytest.mark.parametrize("name", [n for n in texts.SMALL])
def test_reference_equals_brute_force(name):
    text = texts.SMALL[name][:110]
    automaton = reference.Automaton(len(text))
    for n, token in enumerate(text, start=1):
        automaton.append(token)
        so_far = text[:n]
        longest = reference.longest_repeated_suffix(so_far)
        assert automaton.lookup().length == longest
        for length in {1, 2, 5, longest} & set(range(1, longest + 1)):
            first = automaton.lookup(max_match=length, occurrence="first")
            ends = reference.earlier_ends(so_far, length)
            assert first == reference.Match(length, ends[0])
            recent = automaton.lookup(max_match=length, occurrence="recent")
            assert recent.length == length and recent.end in ends
            if reference.classes_of_longer_suffixes(so_far, length) < reference.WINDOW:
                assert recent.end == reference.kept_recent_end(so_far, length)
