"""What the commands print fits 80 columns, into a pipe as in a notebook, where nothing is a TTY."""

import io
import json
import os
import pathlib
import subprocess
import sys

import pytest

import jax_sa.__main__

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
LONG = "a category whose name is much longer than a column of a table should be"


@pytest.fixture
def traces(tmp_path):
    """Texts of two categories, one with a long name, and responses of a million tokens."""
    path = tmp_path / "traces.jsonl"
    texts = [(LONG, [1, 2] * 500_000), ("short", [1, 2, 3] * 40)]
    path.write_text(
        "".join(
            json.dumps({"category": name, "prompt": [1, 2], "response": tokens}) + "\n"
            for name, tokens in texts
        )
    )
    return path


def through_a_pipe(*command):
    environment = os.environ | {"COLUMNS": "80", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    environment.pop("FORCE_COLOR", None)
    result = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    return result.stdout, result.stderr


def assert_fits(text):
    for line in text.splitlines():
        assert len(line) <= 80, line
        assert "\r" not in line and "\033" not in line


def test_replay(traces):
    out, err = through_a_pipe("-m", "jax_sa", "replay", traces)
    assert err == ""
    assert_fits(out)
    assert "1000000" in out and f"{LONG[:17]}..." in out


@pytest.mark.parametrize("fits", [True, False])
def test_plan(fits):
    """Far wider figures than those of one device: 100 TiB, and the longest context there may be."""
    load = ("--hbm", "100TiB", "--requests", 4000) if fits else ("--hbm", "1MB")
    options = ("--context", 1_048_576, "--headroom", 0.5, "--page-alignment", 4096, *load)
    out, err = through_a_pipe("-m", "jax_sa", "plan", "--model", "pro", *options)
    assert err == ""
    assert_fits(out)
    assert "replica: " in out and ("missing" in out) != fits


class NotebookOutput(io.StringIO):
    """A stream as a notebook has it: no terminal, and no file below."""

    encoding = "UTF-8"

    def fileno(self):
        raise io.UnsupportedOperation("fileno")


def test_replay_in_a_notebook(traces, monkeypatch):
    out, err = NotebookOutput(), NotebookOutput()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert jax_sa.__main__.main(["replay", str(traces)]) == 0
    assert_fits(out.getvalue())
    assert err.getvalue() == ""


@pytest.mark.parametrize("command", [["-m", "jax_sa", "replay"], [EXAMPLES / "run_sa_spec.py"]])
def test_help(command):
    pytest.importorskip("tokenizers")
    out, err = through_a_pipe(*command, "--help")
    assert err == ""
    assert_fits(out)


def test_run_sa_spec_through_a_pipe():
    """All that it says around a text: the way of drafting, options without effect, the figures."""
    pytest.importorskip("tokenizers")
    options = "--max_draft 1 --min_match 1 --draft_factor 1 --top_k 1 --top_p 0.5 --seed 1".split()
    options += ["--num_nextn_predict_layers", "0", "--max_new_tokens", "4"]
    prompt = "import os\n" + "x" * 200
    out, err = through_a_pipe(EXAMPLES / "run_sa_spec.py", "--prompt", prompt, *options)
    assert_fits(err)
    assert_fits(out)
    assert "\nnone: 4 tokens, 1.00 per step, nothing drafted\n" in err
    assert "--max_draft, --draft_factor, --min_match: no effect" in err


def test_tables_of_run_sa_spec():
    """The widest figures of four ways of drafting, and a name of a group."""
    pytest.importorskip("tokenizers")
    import comparison

    its = {
        "tokens_per_step": 16.123,
        "acceptance_rate": 1.0,
        "tokens_per_second": 123456.7,
        "identical": 1000,
    }
    names = ["none", "MTP", "SA", "SA+MTP"]
    report = {
        "prompts": 1000,
        "modes": dict.fromkeys(names, its),
        "groups": {"structured data and prose": dict.fromkeys(names, its)},
        "differences": [{"mode": "SA+MTP", "prompt": 999, "token": 999, "logit_gap": 1.2e-15}],
        "written": [],
    }
    assert_fits(comparison.format_report(report))
