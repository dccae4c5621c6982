"""All ops mixed at random for as long as you say, each compared with the reference; memory watched.

    python tests/support/soak.py --seconds 3600 --json soak.json

Every round has fresh states of both indexes and a pool, under a seed that is printed where a result
differs: `--seed` with it repeats that round first. Whatever ops are called, the programs are always
the same few, so once all are compiled, memory must not grow: neither the process's nor a device's.
"""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import sys
import tempfile
import time
import traceback

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import jax
import numpy as np
import test_draft_tree
import test_followers
import test_fused_copy
import test_pool
import test_read_tokens
import test_scan
import test_seqlens
from calls import (
    assert_draft_equals,
    assert_drafts_nothing,
    copy_slots,
    extend,
    extend_lookup,
    int32,
    lookup,
    reference_of,
    reset,
)
from inspection import assert_slot_equals
from pool_reference import Group

import jax_sa
from jax_sa import Status
from jax_sa.cli.progress import ProgressBar

MAX_DRAFT, GROUPS, OPS_OF_A_ROUND = 5, 2, 80
LOST = Status.FULL | Status.OUT_OF_RANGE
WARM_UP = 0.25
"""The part of the time in which memory may still grow: programs are compiled, pools fill."""
ROOM = 48 * 2**20
"""Bytes that it may grow by later, for what JAX and the allocator keep to themselves."""

_insert_slots = jax.jit(jax_sa.insert_slots, donate_argnames="pool")
_insert_built = jax.jit(jax_sa.insert, donate_argnums=0)
_validate = jax.jit(jax_sa.validate)


@dataclasses.dataclass(frozen=True)
class Size:
    """Of the texts of a round."""

    slots: int
    capacity: int
    width: int
    alphabet: int
    pool: int
    vocabulary: int
    """Of the followers, which some of the texts' tokens may be outside of."""


SIZES = [Size(3, 24, 4, 3, 64, 12), Size(5, 121, 9, 2, 256, 1100), Size(2, 700, 300, 4, 1024, 3)]
"""The last has rows that CUDA builds in parallel."""


class Round:
    """A state, a scan, a pool and followers, and what they should hold."""

    def __init__(self, size: Size, seed: int) -> None:
        self.size = size
        self.random = np.random.default_rng(seed)
        self.state = jax_sa.init(size.slots, size.capacity, seed=int(self.random.integers(2**31)))
        self.scan = jax_sa.init(size.slots, size.capacity, index="scan")
        self.pool = jax_sa.init_pool(size.pool, num_groups=GROUPS)
        self.groups = [Group(size.pool) for _ in range(GROUPS)]
        self.followers = jax_sa.init_followers(size.vocabulary, num_groups=GROUPS)
        self.known = np.array(self.followers.tokens)
        self.automata = [reference_of([], size.capacity) for _ in range(size.slots)]
        self.status = [Status(0)] * size.slots

    def draw_rows(self):
        """Slots in any order, some left out, and what each appends; lengths at times too large."""
        size = self.size
        ids = self.random.permutation(size.slots)
        ids[self.random.random(size.slots) < 0.2] = -1
        blocks = self.random.integers(0, size.alphabet, (size.slots, size.width)).tolist()
        lengths = self.random.integers(0, size.width + 1, size.slots)
        wrong = self.random.random(size.slots) < 0.02
        lengths[wrong] = self.random.choice([-1, size.width + 1, 2**31 - 1])
        return ids, blocks, lengths

    def append(self, ids, blocks, lengths):
        for slot, block, length in zip(ids, blocks, lengths, strict=True):
            if slot < 0:
                continue
            if not 0 <= length <= self.size.width:
                self.status[slot] |= Status.OUT_OF_RANGE
                continue
            for token in block[:length]:
                if len(self.automata[slot].text) == self.size.capacity:
                    self.status[slot] |= Status.FULL
                    break
                self.automata[slot].append(token)

    def extend(self):
        rows = self.draw_rows()
        ids, blocks, lengths = rows
        self.state = extend(self.state, blocks, ids, lengths)
        self.scan = extend(self.scan, blocks, ids, lengths)
        self.append(*rows)

    def extend_lookup(self):
        rows = self.draw_rows()
        ids, blocks, lengths = rows
        options = OPTIONS[self.random.integers(len(OPTIONS))]
        call = {"max_draft": MAX_DRAFT, **options}
        self.state, draft = extend_lookup(self.state, blocks, ids, lengths, **call)
        self.scan, scanned = extend_lookup(self.scan, blocks, ids, lengths, **call)
        self.append(*rows)
        for row, slot in enumerate(ids):
            self.check_draft(draft, scanned, row, slot, options)

    def lookup(self):
        options = OPTIONS[self.random.integers(len(OPTIONS))]
        draft = lookup(self.state, max_draft=MAX_DRAFT, **options)
        scanned = lookup(self.scan, max_draft=MAX_DRAFT, **options)
        for slot in range(self.size.slots):
            self.check_draft(draft, scanned, slot, slot, options)

    def check_draft(self, draft, scanned, row, slot, options):
        if slot < 0 or self.status[slot] & LOST:
            assert_drafts_nothing(draft, row)
            assert_drafts_nothing(scanned, row)
            return
        automaton = self.automata[slot]
        assert_draft_equals(draft, row, automaton, MAX_DRAFT, **options)
        test_scan.assert_exact_draft(scanned, row, automaton.text, MAX_DRAFT, **options)

    def lookup_pool(self):
        options = test_pool.LOOKUPS[self.random.integers(len(test_pool.LOOKUPS))]
        seen = self.random.integers(-1, GROUPS, self.size.slots)
        draft = _lookup_pool(self.state, int32(seen), pool=self.pool, **options)
        for slot, group in enumerate(seen):
            if self.status[slot] & LOST:
                assert_drafts_nothing(draft, slot)
                continue
            visible = None if group < 0 else self.groups[group]
            text = self.automata[slot].text
            test_pool.assert_draft_equals(draft, slot, text, visible, MAX_DRAFT, **options)

    def lookup_tree(self):
        options = TREES[self.random.integers(len(TREES))]
        seen = int32(self.random.integers(-1, GROUPS, self.size.slots))
        followers = self.followers if self.random.random() < 0.5 else None
        sources = {"pool": self.pool, "groups": seen, "followers": followers}
        tree = test_draft_tree._lookup_tree(self.state, **sources, **options)
        for slot, group in enumerate(seen.tolist()):
            nodes = test_draft_tree.nodes_of(tree, slot)
            if self.status[slot] & LOST:
                assert nodes == []
                continue
            automaton = self.automata[slot]
            visible = growth = None
            if group >= 0:
                visible = self.groups[group]
                last = automaton.text[-1] if automaton.text else -1
                growth = None if followers is None else (self.known[group].tolist(), last)
            expected = test_draft_tree.expected(automaton, group=visible, growth=growth, **options)
            assert nodes == expected

    def note_followers(self):
        random, vocabulary = self.random, self.size.vocabulary
        tokens = random.integers(-1, min(vocabulary, self.size.alphabet) + 1, 16)
        groups = random.integers(-1, GROUPS + 1, 16)
        kind = random.choice(["plain", "ties", "zeros", "odd", "few"])
        logits = test_followers.make_logits(kind, 16, vocabulary, random)
        self.followers = test_followers._note(
            self.followers, int32(tokens), logits, groups=int32(groups)
        )
        self.known = test_followers.noted(self.known, tokens, logits, groups)

    def insert_texts(self):
        random, size = self.random, self.size
        rows = random.integers(0, size.alphabet, (3, 30)).tolist()
        lengths, into = random.integers(0, 31, 3), random.integers(-1, GROUPS, 3)
        self.pool = test_pool.insert(self.pool, rows, groups=into, lengths=lengths)
        cut = [row[:length] for row, length in zip(rows, lengths, strict=True)]
        self.insert_into_groups(cut, into)

    def insert_slots(self):
        slots = self.random.integers(-1, self.size.slots, 3)
        into = self.random.integers(-1, GROUPS, 3)
        self.pool = _insert_slots(self.pool, self.state, int32(slots), groups=int32(into))
        cut = []
        for slot, group in zip(slots, into, strict=True):
            lost = slot >= 0 and self.status[slot] & Status.OUT_OF_RANGE
            cut.append([] if slot < 0 or lost else list(self.automata[slot].text))
            if lost and group >= 0:
                self.groups[group].status = Status.OUT_OF_RANGE
        self.insert_into_groups(cut, into)

    def insert_into_groups(self, rows, into):
        for number, group in enumerate(self.groups):
            group.insert([row for row, g in zip(rows, into, strict=True) if g == number])

    def reset(self):
        slot = int(self.random.integers(self.size.slots))
        self.state, self.scan = reset(self.state, [slot]), reset(self.scan, [slot])
        self.set(slot, [], Status(0))

    def copy_slots(self):
        source, to = map(int, self.random.integers(0, self.size.slots, 2))
        self.state = copy_slots(self.state, [source], [to])
        self.scan = copy_slots(self.scan, [source], [to])
        self.set(to, self.automata[source].text, self.status[source])

    def insert_built(self):
        slot = int(self.random.integers(self.size.slots))
        length = self.random.integers(0, self.size.capacity + 1)
        text = self.random.integers(0, self.size.alphabet, length).tolist()
        seed = int(self.random.integers(2**31))
        for name, index in (("state", "automaton"), ("scan", "scan")):
            built = jax_sa.build_on_host(text, self.size.capacity, seed=seed, index=index)
            built = jax.device_put(built, getattr(self, name).tokens.sharding)
            setattr(self, name, _insert_built(getattr(self, name), built, int32(slot)))
        self.set(slot, text, Status(0))

    def set(self, slot, text, status):
        self.automata[slot] = reference_of(text, self.size.capacity)
        self.status[slot] = status

    def read_tokens(self):
        slots = self.random.integers(-1, self.size.slots, 4)
        starts = self.random.integers(-3, self.size.capacity, 4)
        for state in (self.state, self.scan):
            got = test_read_tokens.read(state, int32(starts), int32(slots), length=9)
            for row, (slot, start) in enumerate(zip(slots, starts, strict=True)):
                text = self.automata[slot].text if slot >= 0 else []
                assert got[row].tolist() == test_read_tokens.expected(text, start, 9)

    def save_and_load(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "saved"
            for name in ("state", "scan", "pool", "followers"):
                jax_sa.save(path, getattr(self, name))
                setattr(self, name, jax_sa.load(path))

    def metadata(self):
        random = self.random
        kv_lens, q_lens = random.integers(-5, 90, 6), random.integers(-3, 40, 6)
        test_seqlens.assert_expands(kv_lens, q_lens, 100)
        tensors = [
            test_fused_copy.Tensor("int8", (9, 33), (7, 33)),
            test_fused_copy.Tensor("float32", (8,), (8,)),
        ]
        rows, seed = int(random.integers(-2, 12)), int(random.integers(2**31))
        test_fused_copy.assert_copies(tensors, rows, fill=1, seed=seed)

    def check(self):
        """Everything that is there."""
        assert not np.any(_validate(self.state)) and not np.any(_validate(self.scan))
        state, scan = jax.device_get((self.state, self.scan))
        for slot, status in enumerate(self.status):
            assert_slot_equals(state, slot, self.automata[slot], status=status)
            test_scan.assert_exact(scan, slot, self.automata[slot].text, status)
        test_pool.assert_pool_equals(jax.device_get(self.pool), *self.groups)
        np.testing.assert_array_equal(self.followers.tokens, self.known)


OPTIONS = [
    {},
    {"occurrence": "first", "max_match": 3},
    {"min_match": 2, "draft_factor": 0.5},
    {"periodic": False},
]

TREES = [test_draft_tree.LOOKUPS[number] for number in (0, 1, 6, 8)]
"""The last two leave room for followers."""


def _lookup_pool(state, groups, pool, **options):
    return _lookup(state, pool=pool, groups=groups, max_draft=MAX_DRAFT, **options)


_lookup = jax.jit(
    jax_sa.lookup,
    static_argnames=(
        *("max_draft", "min_match", "max_match"),
        *("occurrence", "draft_factor", "periodic"),
    ),
)

STEPS = [
    *([Round.extend] * 3 + [Round.extend_lookup] * 4),
    *(Round.lookup, Round.lookup_pool, Round.lookup_tree),
]
RARE = [
    *(Round.insert_texts, Round.insert_slots, Round.reset, Round.copy_slots, Round.insert_built),
    *(Round.read_tokens, Round.save_and_load, Round.metadata, Round.note_followers),
]


def run_round(seed: int) -> int:
    """The ops of a round, which its seed decides; how many there were."""
    random = np.random.default_rng(seed)
    current = Round(SIZES[random.integers(len(SIZES))], seed)
    for number in range(OPS_OF_A_ROUND):
        ops = STEPS if random.random() < 0.7 else RARE
        ops[random.integers(len(ops))](current)
        if number % 8 == 7:
            current.check()
    return OPS_OF_A_ROUND


def memory() -> dict[str, int]:
    """The bytes that the process and its device hold; 0 for what this system does not tell."""
    resident = 0
    with contextlib.suppress(OSError):
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        resident = 4096 * pages
    stats = jax.devices()[0].memory_stats() or {}
    live = sum(array.nbytes for array in jax.live_arrays())
    return {"resident": resident, "device": stats.get("bytes_in_use", 0), "live": live}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of the first round; the next has + 1")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write figures here")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    bar, begun, seed = ProgressBar(max(1, int(args.seconds)), "s"), time.monotonic(), args.seed
    passed, ops, samples, failure = 0.0, 0, [], ""
    while passed < args.seconds and not failure:
        try:
            ops += run_round(seed)
        except Exception:
            failure = traceback.format_exc()
            break
        now = time.monotonic() - begun
        bar.advance(min(int(now), int(args.seconds)) - min(int(passed), int(args.seconds)))
        passed, seed = now, seed + 1
        samples.append((passed, memory()))
        if args.json:
            args.json.write_text(json.dumps(figures(args, passed, ops, seed, samples, failure)))
    result = figures(args, passed, ops, seed, samples, failure)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    for name, value in result.items():
        print(f"{name}: {value}")
    return 1 if failure or result["grew"] else 0


def figures(args, passed, ops, seed, samples, failure) -> dict:
    """What came of it so far. `grew` names the memory that grew after the warm-up."""
    warm = [sample for at, sample in samples if at >= WARM_UP * args.seconds]
    half = len(warm) // 2
    grown = {}
    for name in warm[0] if half else ():
        first, second = ([sample[name] for sample in part] for part in (warm[:half], warm[half:]))
        grown[name] = max(second) - max(first)
    return {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "seconds": round(passed, 1),
        "rounds": seed - args.seed,
        "ops": ops,
        "next_seed": seed,
        "memory": samples[-1][1] if samples else {},
        "grown_by": grown,
        "grew": [name for name, size in grown.items() if size > ROOM],
        "failure": failure,
    }


if __name__ == "__main__":
    sys.exit(main())
