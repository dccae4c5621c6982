"""The examples of docs/cache_schema.md print and compute what it says."""

import re
from fractions import Fraction
from pathlib import Path

import pytest

from jax_sa.__main__ import main

DOCUMENT = (Path(__file__).parent.parent / "docs" / "cache_schema.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```\n\$ python -m jax_sa (.*)\n((?:.*\n)*?)```", DOCUMENT)
PRO_ROWS = re.findall(r"\| `(.*)` \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|", DOCUMENT)
PRO = "plan --model pro --hbm 141GB --kv fp8 --indexer fp8 --context {} {}"


def test_there_are_examples():
    assert (len(EXAMPLES), len(PRO_ROWS)) == (2, 4)


def test_python_examples():
    names = {}
    for code in re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL):
        exec(compile(code, "docs/cache_schema.md", "exec"), names)
    assert names["layout"].kv.bytes == 512
    assert names["per_token"] == Fraction(88183, 16)
    assert names["per_request"] == 26_705_920
    assert names["page"].tolist() == [3, 3, 0] and names["entry"].tolist() == [10, 11, 0]


@pytest.mark.parametrize(("command", "shown"), EXAMPLES)
def test_example_is_what_the_command_prints(command, shown, capsys):
    assert main(command.split()) == 0
    printed = capsys.readouterr().out
    *cut, end = shown.split("…\n")
    assert printed.endswith(end) if cut else printed == end


@pytest.mark.parametrize(("options", "short", "middle", "long"), PRO_ROWS)
def test_most_requests_of_pro_on_eight(options, short, middle, long, capsys):
    for context, most in ((8192, short), (131_072, middle), (1_048_576, long)):
        assert main(PRO.format(context, options).split()) == 0
        assert f"most requests of {context:,} tokens: {most}\n" in capsys.readouterr().out
