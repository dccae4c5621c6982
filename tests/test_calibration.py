"""The measurement of steps ends, whatever the work is like."""

import jax.numpy as jnp
import pytest

from jax_sa import calibration


class Work:
    """Steps that each width can do before its work ends, and a clock that they advance.

    A call takes `call` seconds more, and `idle` seconds more still if it does no step. After a
    restart, the first step of each width takes `first` seconds more.
    """

    def __init__(self, monkeypatch, lengths, seconds, call=0.0, idle=0.0, first=0.0):
        self.lengths, self.seconds, self.call, self.idle = lengths, seconds, call, idle
        self.now, self.restarts = 0.0, 0
        self.first, self.used = first, set()
        self.slices = set()
        monkeypatch.setattr(calibration.time, "perf_counter", lambda: self.now)

    def restart(self, left):
        self.restarts += 1
        self.used = set()
        return max(self.lengths)

    def advance(self, left, costs, steps):
        width = int(jnp.argmin(costs))
        self.slices.add(steps)
        left = min(left, self.lengths[width])
        done = min(steps, left)
        self.now += self.call + (done * self.seconds[width] if done else self.idle)
        if done and width not in self.used:
            self.now += self.first
            self.used.add(width)
        return left - done, done

    def measure(self, on_progress=lambda done, total: None):
        return calibration.measure_costs(
            self.restart, self.advance, len(self.lengths), on_progress
        )[0]


@pytest.mark.parametrize("lengths", [[1, 1], [7, 1], [100, 100], [3, 64]], ids=str)
@pytest.mark.parametrize("seconds", [[1.0, 2.0], [1e-5, 1e-3]], ids=str)
@pytest.mark.parametrize("call", [0.0, 0.9e-5])
def test_seconds_of_a_step(monkeypatch, lengths, seconds, call):
    work, seen = Work(monkeypatch, lengths, seconds, call), []
    costs = work.measure(lambda *done: seen.append(done))
    assert costs.tolist() == pytest.approx(seconds, rel=1e-4)
    assert seen == [(1, 2), (2, 2)]
    assert work.restarts < 60


@pytest.mark.parametrize("idle", [-1e-3, 1e-3])
def test_a_call_without_a_step_misjudges_all_widths_alike(monkeypatch, idle):
    """A wide step writes more tokens, so that its text ends after fewer of them."""
    work = Work(monkeypatch, [200, 50, 7], [1.0e-3, 1.1e-3, 1.2e-3], call=2e-3, idle=idle)
    costs = work.measure()
    assert (costs / costs[0]).tolist() == pytest.approx([1.0, 1.1, 1.2], abs=0.05)


@pytest.mark.parametrize("widest", [20e-3, 40e-3])
def test_the_first_step_of_a_call_does_not_count_for_more(monkeypatch, widest):
    """As on a CPU. It is in longer slices and in shorter ones, however slow the widest step is."""
    seconds = [4e-3, 6e-3, widest]
    work = Work(monkeypatch, [200, 100, 60], seconds, call=2.5e-3, idle=-2.5e-3)
    assert work.measure().tolist() == pytest.approx(seconds, rel=1e-3)


@pytest.mark.parametrize("tokens", [150, 200, 250, 300], ids=str)
def test_a_slow_step_after_each_restart_is_not_taken_for_a_width(monkeypatch, tokens):
    """The wider, the sooner the text ends: each width would be the one after a restart for long."""
    seconds = [0.7e-3, 0.75e-3, 0.8e-3, 0.85e-3, 0.9e-3]
    lengths = [tokens // per_step for per_step in (1, 2, 2, 3, 3)]
    work = Work(monkeypatch, lengths, seconds, call=1e-3, first=20e-3)
    assert work.measure().tolist() == pytest.approx(seconds, rel=1e-3)
    assert work.restarts > 3


def test_a_call_that_takes_longer_than_a_step_leaves_slices_long(monkeypatch):
    """What is not known of it exactly falls on many steps."""
    work = Work(monkeypatch, [500, 500], [0.5e-3, 0.7e-3], call=2e-3)
    work.measure()
    longest = calibration.MAX_SLICE
    assert work.slices == {0, 1, longest // calibration.SHORT, longest}


def test_what_more_work_takes(monkeypatch):
    now, seen = [0.0], []
    monkeypatch.setattr(calibration.time, "perf_counter", lambda: now[0])

    def run(work, more):
        seen.append((work, more))
        now[0] += 0.5 + 3.0 * more + (work < 2)  # the first run of each compiles
        return work + 1

    assert calibration.measure_more(run, 0) == (3.0, 2 * calibration.ROUNDS[0])
    assert seen[:3] == [(0, False), (1, True), (2, False)]


def test_work_without_a_step_is_an_error(monkeypatch):
    with pytest.raises(ValueError, match="prompts: expected answers of several steps"):
        Work(monkeypatch, [5, 0], [1.0, 1.0]).measure()
