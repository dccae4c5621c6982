"""The replay command against a slow loop over the reference automaton."""

import dataclasses
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import reference
import texts
import tree_reference
from calls import reference_of
from pool_reference import NO_HIT, Group

import jax_sa.__main__
from jax_sa import replay, traces
from jax_sa.tokenizer import load_tokenizer


class SlowReplay:
    """One trace, one token at a time."""

    def __init__(self, trace):
        self.trace = trace
        self.text = trace.tokens.tolist()
        self.automaton = reference_of(self.text[: trace.prompt_length], len(self.text))
        self.counts = {source: [0, 0, 0] for source in ("none", "own", "pool")}

    @property
    def ended(self):
        return len(self.automaton.text) == len(self.text)

    def step(self, group, max_draft, draft_factor=None, periodic=True, **options):
        text = self.automaton.text
        match = self.automaton.lookup(**options)
        options.pop("occurrence", None)
        hit = NO_HIT if group is None else group.lookup(text, **options)[0]
        if hit.length > match.length:
            source = "pool"
            draft = group.draft(hit, max_draft, draft_factor or math.inf)
        else:
            source = "own" if match.length else "none"
            draft = reference.draft(text, match, max_draft, draft_factor, periodic)
        left = self.text[len(text) :]
        confirmed = 0
        while confirmed < min(len(draft), len(left)) and draft[confirmed] == left[confirmed]:
            confirmed += 1
        for i, count in enumerate((1, len(draft), confirmed)):
            self.counts[source][i] += count
        for token in left[: confirmed + 1]:
            self.automaton.append(token)

    def totals(self):
        return tuple(map(sum, zip(*self.counts.values(), strict=True)))


def slow_replay(trace, max_draft, **options):
    """Steps, drafted and accepted."""
    replayed = SlowReplay(trace)
    while not replayed.ended:
        replayed.step(None, max_draft, **options)
    return replayed.totals()


def slow_replay_with_pool(given, num_slots, group, responses_only, **options):
    """All traces side by side, in lock step; each goes into the pool when it ends."""
    waiting = [SlowReplay(trace) for trace in given]
    done, slots = list(waiting), [None] * num_slots
    while waiting or any(slots):
        for slot, replayed in enumerate(slots):
            if replayed is None and waiting:
                slots[slot] = waiting.pop(0)
        if not any(replayed.ended for replayed in slots if replayed):
            for replayed in filter(None, slots):
                replayed.step(group, **options)
        ended = [replayed for replayed in slots if replayed and replayed.ended]
        start = "prompt_length" if responses_only else None
        group.insert([each.text[getattr(each.trace, start) if start else 0 :] for each in ended])
        slots = [None if replayed in ended else replayed for replayed in slots]
    return done


def some_traces():
    made = [
        ("code", texts.source_code(400), 150),
        ("random", texts.random_text(2, 120), 1),
        ("random", texts.random_text(50, 60), 59),
        ("loop", texts.periodic_text(5, 90), 12),
        ("silent", [3, 1, 4, 1, 5], 5),
        ("int32", texts.edge_tokens(80), 20),
    ]
    return [
        traces.Trace(str(i), category, np.array(tokens, np.int32), prompt)
        for i, (category, tokens, prompt) in enumerate(made)
    ]


OPTIONS = [
    {"max_draft": 8},
    {"max_draft": 3, "min_match": 2, "max_match": 4, "occurrence": "first"},
    {"max_draft": 16, "draft_factor": 1.5, "periodic": False},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("num_slots", [1, 4, 50])
def test_replay_equals_the_slow_loop(options, num_slots):
    given = some_traces()
    results = replay.replay_traces(given, num_slots=num_slots, **options)
    assert [result.trace for result in results] == given
    for result in results:
        assert (result.steps, result.drafted, result.accepted) == slow_replay(
            result.trace, **options
        )


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("responses_only", [False, True])
@pytest.mark.parametrize("num_slots", [1, 3])
def test_replay_with_a_pool_equals_the_slow_loop(options, responses_only, num_slots):
    given = [*some_traces(), *some_traces()]
    capacity = 1024  # forgets the oldest
    results = replay.replay_traces(
        given,
        num_slots=num_slots,
        pool_capacity=capacity,
        pool_responses_only=responses_only,
        **options,
    )
    expected = slow_replay_with_pool(given, num_slots, Group(capacity), responses_only, **options)
    for result, slow in zip(results, expected, strict=True):
        counts = {name: list(dataclasses.astuple(own)) for name, own in result.sources.items()}
        assert counts == slow.counts
        assert (result.steps, result.drafted, result.accepted) == slow.totals()
    assert sum(result.sources["pool"].accepted for result in results) > 20


@pytest.mark.parametrize("options", [{}, {"draft_factor": 1.5}, {"max_match": 4}])
@pytest.mark.parametrize("num_slots", [1, 3])
def test_replay_of_trees_equals_the_slow_loop(options, num_slots):
    given = some_traces()
    results = replay.replay_traces(given, num_slots=num_slots, max_nodes=9, max_draft=7, **options)
    for result in results:
        slow = slow_replay_of_trees(result.trace, **options)
        assert (result.steps, result.drafted, result.accepted) == slow


def slow_replay_of_trees(trace, draft_factor=None, **options):
    """Steps, nodes and accepted nodes."""
    text = trace.tokens.tolist()
    automaton = reference_of(text[: trace.prompt_length], len(text))
    counts = np.zeros(3, int)
    while left := text[len(automaton.text) :]:
        candidates = tree_reference.candidates(automaton, 7, **options)
        nodes = tree_reference.tree(candidates, 9, draft_factor)
        confirmed, at = 0, -1
        while confirmed < len(left):
            next_nodes = [i for i, n in enumerate(nodes) if n[:2] == (left[confirmed], at)]
            if not next_nodes:
                break
            confirmed, at = confirmed + 1, next_nodes[0]
        counts += (1, len(nodes), confirmed)
        for token in left[: confirmed + 1]:
            automaton.append(token)
    return tuple(counts.tolist())


def test_replay_checks_its_arguments():
    given = some_traces()[:1]
    for arguments, options, error, message in [
        ([], {}, ValueError, "traces: expected at least one, got none"),
        (given, {"num_slots": 0}, ValueError, "num_slots: expected an int"),
        (given, {"max_draft": 2**31 - 1}, ValueError, "max_draft: expected an int"),
        (given, {"min_match": 1.5}, TypeError, "min_match: expected an int"),
        (given, {"longest": 3}, TypeError, "longest"),
        (given, {"max_nodes": 0}, ValueError, "max_nodes: expected an int"),
    ]:
        with pytest.raises(error, match=message):
            replay.replay_traces(arguments, **options)


def test_replay_of_numpy_integers():
    (trace,) = given = some_traces()[:1]
    options = {"max_draft": np.int8(100), "min_match": np.int8(2), "max_match": np.int8(127)}
    (result,) = replay.replay_traces(given, num_slots=np.int8(127), **options)
    expected = slow_replay(trace, 100, min_match=2, max_match=127)
    assert (result.steps, result.drafted, result.accepted) == expected


def save_npz(path, **changes):
    given = some_traces()
    fields = {
        "tokens": np.concatenate([trace.tokens for trace in given]),
        "offsets": np.cumsum([0, *(len(trace.tokens) for trace in given)]),
        "prompt_lengths": np.array([trace.prompt_length for trace in given]),
        "category": np.array([trace.category for trace in given]),
        "source": np.array(["here"] * len(given)),
        "id": np.array([trace.id for trace in given]),
    }
    fields = {name: value for name, value in (fields | changes).items() if value is not None}
    np.savez(path, **fields)
    return path


def assert_traces_equal(got, expected):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert (a.id, a.category, a.prompt_length) == (b.id, b.category, b.prompt_length)
        assert a.tokens.dtype == np.int32
        np.testing.assert_array_equal(a.tokens, b.tokens)


def test_npz(tmp_path):
    assert_traces_equal(traces.load(save_npz(tmp_path / "t.npz")), some_traces())
    bare = traces.load(save_npz(tmp_path / "bare.npz", category=None, source=None, id=None))
    assert [(trace.id, trace.category) for trace in bare] == [(str(i), "all") for i in range(6)]


def test_jsonl(tmp_path):
    path = tmp_path / "t.jsonl"
    lines = [
        {"prompt": [1, 2], "response": [-3], "id": "a", "category": "ids"},
        {"prompt": "né", "response": "o"},
    ]
    path.write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    ids, text = traces.load(path)
    assert (ids.id, ids.category, ids.tokens.tolist(), ids.prompt_length) == (
        "a",
        "ids",
        [1, 2, -3],
        2,
    )
    assert (text.id, text.category, text.tokens.tolist(), text.prompt_length) == (
        "1",
        "all",
        list("néo".encode()),
        3,
    )
    (_, words) = traces.load(path, encode=lambda text: [len(text)])
    assert words.tokens.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no traces"),
        ("\n", "holds no traces"),
        ('{"prompt": [1], "response": [2]}\nnot json', "line 2: not JSON"),
        ("[1]", "line 1: expected an object, got list"),
        ('{"response": [2]}', "line 1: field prompt: missing"),
        ('{"prompt": [1]}', "line 1: field response: missing"),
        ('{"prompt": [1.5], "response": []}', "line 1: field prompt: expected text or a list"),
        ('{"prompt": [1], "response": [true]}', "line 1: field response: expected text or a list"),
        ('{"prompt": 7, "response": []}', "line 1: field prompt: expected text or a list"),
        ('{"prompt": [2147483648], "response": []}', "line 1: field prompt: expected text or a"),
        ('{"prompt": [], "response": [1]}', "line 1: field prompt: expected 1 to 1 tokens"),
        (b"\xff\xfe", "line 1: not JSON"),
    ],
)
def test_malformed_jsonl(tmp_path, content, message):
    path = tmp_path / "t.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        traces.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": None}, "field tokens: missing"),
        ({"offsets": None}, "field offsets: missing"),
        ({"prompt_lengths": None}, "field prompt_lengths: missing"),
        ({"tokens": np.zeros(735)}, "field tokens: expected a list of integers, got float64"),
        ({"tokens": np.full(735, 2**31)}, "field tokens: expected int32 values"),
        ({"prompt_lengths": np.ones(5, int)}, "field prompt_lengths: expected 6 entries"),
        ({"prompt_lengths": np.zeros(6, int)}, "trace 0: field prompt: expected 1 to 400"),
        ({"offsets": np.array([0, 9, 5, 6, 7, 8, 9])}, "field offsets: expected ascending"),
        ({"offsets": np.array([0, 1, 2, 3, 4, 5, 9999])}, "field offsets: expected ascending"),
        ({"offsets": np.zeros(1, int), "prompt_lengths": np.zeros(0, int)}, "category"),
        ({"id": np.array(["a"])}, "field id: expected 6 entries"),
    ],
)
def test_malformed_npz(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        traces.load(save_npz(tmp_path / "t.npz", **changes))


def test_unreadable_files(tmp_path):
    (tmp_path / "t.npz").write_bytes(b"PK not a zip")
    with pytest.raises(ValueError, match=r"t\.npz: not a readable \.npz file"):
        traces.load(tmp_path / "t.npz")
    with pytest.raises(ValueError, match=r"none\.npz: cannot be read: No such file"):
        traces.load(tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"t\.txt: expected a \.npz or \.jsonl file"):
        traces.load(tmp_path / "t.txt")


def run(*arguments):
    return jax_sa.__main__.main(["replay", *map(str, arguments)])


def test_command(tmp_path, capsys):
    path, report_path = save_npz(tmp_path / "t.npz"), tmp_path / "report.json"
    assert run(path, "--max-draft", 4, "--slots", 3, "--json", report_path) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ("category responses tokens steps tokens/step drafted/step".split())
    assert [line.split()[0] for line in table[2:]] == [
        *("code", "int32", "loop", "random", "silent", "all")
    ]
    report = json.loads(report_path.read_text())
    for got, trace in zip(report["traces"], some_traces(), strict=True):
        steps, drafted, accepted = slow_replay(trace, 4)
        assert got == {
            "id": trace.id,
            "category": trace.category,
            "steps": steps,
            "drafted": drafted,
            "accepted": accepted,
            "source": {
                "none": got["source"]["none"],
                "own": got["source"]["own"],
                "pool": {"steps": 0, "drafted": 0, "accepted": 0},
            },
        }
    everything = report["categories"][-1]
    assert everything["responses"] == 6
    steps = sum(trace["steps"] for trace in report["traces"])
    accepted = sum(trace["accepted"] for trace in report["traces"])
    assert everything["tokens_per_step"] == pytest.approx(1 + accepted / steps)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.npz"], "none.npz: cannot be read"),
        (["--max-draft", "0"], "max_draft: expected an int"),
        (["--min-match", "3", "--max-match", "2"], "max_match: expected an int in [3,"),
        (["--draft-factor", "-1"], "draft_factor: expected a finite number above 0"),
        (["--slots", "0"], "--slots: expected an int"),
        (["--pool", "0"], "--pool: capacity: expected an int in [1,"),
        (["--pool", "0"], "--pool: capacity: expected an int in [1, 268435456], got 0"),
        (["--tree", "0"], "--tree: expected an int in [1, 1024], got 0"),
        (["--pool-responses-only"], "--pool-responses-only: expected --pool, got none"),
        (["--limit", "-2"], "--limit: expected an int"),
        (["--tokenizer", "x.json"], "--tokenizer: expected TRACES"),
        (["--json", "/none/x.json", "--limit", "1"], "--json: /none/x.json: cannot be written"),
    ],
)
def test_command_errors(arguments, message, capsys):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_standard_library_as_a_user_runs_it():
    command = [sys.executable, "-m", "jax_sa", "replay", "--limit", "2", "--slots", "2"]
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # this process has it
    result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert result.stdout.splitlines()[2].split()[:3] == ["python", "2", "8192"]
    assert result.stderr == ""


def test_a_tokenizer_for_text(tmp_path, capsys):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"a": 7, "b": 8, "?": 9}, unk_token="?")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"prompt": "a b c a", "response": "b c"}))
    assert run(path, "--tokenizer", tmp_path / "tokenizer.json") == 0
    cells = capsys.readouterr().out.splitlines()[2].split()
    assert cells[:4] == ["all", "1", "2", "1"]  # 2 tokens in 1 step: a b ? a, then b ?
    (tmp_path / "broken.json").write_text("{}")
    assert run(path, "--tokenizer", tmp_path / "broken.json") == 2
    assert capsys.readouterr().err.startswith("error: --tokenizer: ")


def test_tokenizers_that_cannot_be_loaded(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # as where it is not installed
    with pytest.raises(ValueError, match=r"tokenizers is missing: pip install jax_sa\[tokenizer\]"):
        load_tokenizer(path)
    monkeypatch.undo()
    pytest.importorskip("tokenizers")
    with pytest.raises(ValueError, match=r"tokenizer\.json: cannot be read: No such file"):
        load_tokenizer(path)
    for content in ("", "{}", "not json", "[]"):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer: .+"):
            load_tokenizer(path)
