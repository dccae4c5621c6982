"""The example that serves requests as they come and go."""

import json
import sys

import pytest

pytest.importorskip(
    "tokenizers", reason="tokenizers is not installed; pip install jax_sa[tokenizer]"
)

import continuous_batching as example

pytestmark = pytest.mark.usefixtures("compiled_once")
SHORT = ("--max-new-tokens", 24)


def run(capsys, *options):
    status = example.main([*map(str, options)])
    return status, *capsys.readouterr()


@pytest.mark.parametrize(
    "options",
    [
        (),
        pytest.param(("--rows", 1, "--pages", 12), marks=pytest.mark.slow),
        pytest.param(("--rows", 7, "--pages", 80, "--budget", 200), marks=pytest.mark.slow),
    ],
    ids=["default", "one-row", "a-row-each"],
)
def test_answers_are_those_of_plain_decoding(capsys, options):
    status, out, err = run(capsys, "--json", *SHORT, *options)
    report = json.loads(out)
    assert status == 0 and report["wrong"] == []
    assert [row["request"] for row in report["requests"]] == [a[1] for a in example.ARRIVALS]
    assert all(row["tokens"] >= row["steps"] for row in report["requests"])
    begins = [line.split()[0] for line in err.splitlines() if "begins" in line]
    assert begins == [a[1] for a in example.ARRIVALS]  # first come, first served


def test_the_table(capsys):
    status, out, _ = run(capsys, *SHORT)
    assert status == 0
    assert "waits" in out and out.rstrip().endswith("steps in all")


def test_a_wrong_answer_is_one_line_and_status_1(capsys, monkeypatch):
    monkeypatch.setattr(example, "plain_answers", lambda *_: [[]] * len(example.ARRIVALS))
    status, _, err = run(capsys, *SHORT)
    assert status == 1
    assert err.startswith("error: not what plain decoding writes: rename, prose")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--pages", 2), "error: --pages: expected at least"),
        (("--max-new-tokens", 4096), "error: --max-new-tokens: expected at most"),
        (("--budget", 2), "error: --budget: expected at least the 3 rows, got 2"),
    ],
)
def test_bad_options_are_one_line(capsys, options, message):
    status, out, err = run(capsys, *options)
    assert (status, out) == (2, "")
    assert err.startswith(message) and err.count("\n") == 1


def test_help(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["continuous_batching.py"])
    with pytest.raises(SystemExit) as stop:
        example.main(["--help"])
    assert stop.value.code == 0 and "--budget" in capsys.readouterr().out
