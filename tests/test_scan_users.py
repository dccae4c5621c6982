"""Whatever takes a state takes a scan: the same text, drafts and steps as with an automaton.

Matches are followed at their first end, which both indexes always find.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import packed_model
import pytest
import texts
import toy_model
from calls import int32
from test_replay import some_traces

import jax_sa
import jax_sa.__main__
from jax_sa import replay

PARAMS = jnp.asarray(toy_model.TABLE)
ROWS, COUNT, CAPACITY = 3, 40, 128


def both(run):
    """What a run gives with a scan, which is what it gives with an automaton."""
    scan, automaton = run("scan"), run("automaton")
    jax.tree.map(np.testing.assert_array_equal, scan, automaton)
    return scan


def prompts(rows, width):
    random = np.random.default_rng(0)
    tokens = random.integers(0, toy_model.VOCABULARY, (rows, width))
    return int32(tokens), int32(random.integers(1, width + 1, rows))


@pytest.mark.parametrize("neural", [False, True])
def test_generate(neural):
    drafter = {"drafter": toy_model.drafter(2)} if neural else {}

    def run(index):
        generation = jax_sa.generate(
            toy_model.model,
            PARAMS,
            *prompts(ROWS, 12),
            toy_model.init_cache(ROWS, CAPACITY),
            max_new_tokens=COUNT,
            state=jax_sa.init(ROWS, CAPACITY, index=index),
            max_draft=4,
            occurrence="first",
            **drafter,
        )
        assert isinstance(generation.state, jax_sa.ScanState) == (index == "scan")
        return generation.tokens, generation.lengths, generation.steps, generation.drafted

    _, lengths, steps, drafted = both(run)
    assert drafted.any() and (steps < lengths).any()


def test_calibrate():
    """It leaves the state as empty as it came."""
    decoder = jax_sa.Decoder(toy_model.model, max_draft=2)
    measured = decoder.calibrate(
        PARAMS,
        *prompts(ROWS, 12),
        toy_model.init_cache(ROWS, CAPACITY),
        max_new_tokens=8,
        state=jax_sa.init(ROWS, CAPACITY, index="scan"),
    )
    assert isinstance(measured.state, jax_sa.ScanState)
    assert not any(leaf.any() for leaf in jax.tree.leaves(measured.state))


def test_packed_decoder():
    decoder = jax_sa.PackedDecoder(packed_model.model, budget=9, occurrence="first")
    tokens, lengths = packed_model.make_prompts(7, 12)

    def run(index):
        done = decoder.generate(
            PARAMS,
            prompts=tokens,
            prompt_lengths=lengths,
            cache=packed_model.row_cache(ROWS, 64),
            rows=ROWS,
            max_new_tokens=20,
            state=jax_sa.init(ROWS, 64, index=index),
        )
        return done.tokens, done.lengths, done.steps, done.drafted

    assert both(run)[3].any()


def test_manager():
    first, second = (texts.random_text(3, 20, seed=seed) for seed in range(2))

    def run(index):
        config = jax_sa.SAConfig(
            max_seq_len=64, max_slots=3, max_draft=4, occurrence="first", index=index
        )
        with jax_sa.SuffixAutomatonManager(config, 2) as manager:
            assert manager.state_size == jax_sa.get_state_size(64, index=index)
            manager.add_request("a", first)
            manager.add_request("b", second)
            manager.prepare(["b", "a"])
            drafts = [manager.lookup(), manager.extend(int32([[1, 2], [0, 9]]), int32([2, 1]))]
            manager.remove_request("b")
            manager.add_request("c", first[3:])
            manager.prepare(["c"])
            return *drafts, manager.lookup(limits=int32([2, 3]))

    assert both(run)[0].length.all()


@pytest.mark.parametrize("options", [{"max_draft": 8}, {"max_draft": 4, "draft_factor": 0.7}])
def test_replay(options):
    def run(index):
        results = replay.replay_traces(
            some_traces(), num_slots=4, index=index, occurrence="first", **options
        )
        return [(result.steps, result.drafted, result.accepted) for result in results]

    both(run)


def test_the_replay_command(tmp_path, capsys):
    trace = tmp_path / "trace.jsonl"
    trace.write_text(json.dumps({"prompt": "abcabc", "response": "abcabcabd" * 6}) + "\n")
    out = tmp_path / "out.json"
    arguments = ["replay", str(trace), "--index", "scan", "--json", str(out)]
    assert jax_sa.__main__.main(arguments) == 0
    written = json.loads(out.read_text())
    assert written["options"]["index"] == "scan"
    assert written["categories"][0]["tokens_per_step"] > 2
    with pytest.raises(SystemExit):
        jax_sa.__main__.main(["replay", str(trace), "--index", "tree"])
    assert "--index" in capsys.readouterr().err
