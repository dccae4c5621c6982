"""docs/errors.md has every message that the library raises, and no other."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
ANY = "…"
"""What a message leaves to the call: a name, a number, a shape."""


def template(node, names):
    """A message with `ANY` for what only a call knows; `names` are the strings of its function."""
    match node:
        case ast.Constant(value=str()):
            return node.value
        case ast.JoinedStr():
            return "".join(template(part, names) for part in node.values)
        case ast.FormattedValue(value=ast.Name(id=name)) | ast.Name(id=name):
            return names.get(name, ANY)
        case ast.BinOp(op=ast.Add()):
            return template(node.left, names) + template(node.right, names)
    return ANY


def is_raised(node):
    return isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)


def messages_of(function):
    """The templates of what a function raises, by its strings as they are last assigned."""
    names, found = {}, []
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            text = template(node.value, names)
            if text.strip(ANY):
                names[node.targets[0].id] = text
    for node in ast.walk(function):
        if is_raised(node) and node.exc.args and "Error" in ast.unparse(node.exc.func):
            text = template(node.exc.args[0], names)
            found.append(re.sub(f"{ANY}+", ANY, text))
    return found


def raised():
    """Templates of all messages by the place where they are raised.

    Left out is what has no word of its own: another message with a name before it.
    """
    for path in sorted((ROOT / "jax_sa").rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            for text in messages_of(node):
                if text.strip(f"{ANY}: "):
                    yield f"{path.relative_to(ROOT)}: {text}", text


def patterns():
    """The first cells of the tables of messages, as regular expressions."""
    page = (ROOT / "docs/errors.md").read_text().partition("## What only the device knows")[0]
    for cell in re.findall(r"^\| `([^`]*)` \|", page, re.MULTILINE):
        literals = [re.escape(literal) for literal in cell.split(ANY)]
        yield cell, re.compile(".*".join(literals), re.DOTALL)


MESSAGES = dict(raised())
ROWS = dict(patterns())


@pytest.mark.parametrize("place", MESSAGES)
def test_message_has_a_row(place):
    assert any(pattern.fullmatch(MESSAGES[place]) for pattern in ROWS.values())


@pytest.mark.parametrize("cell", ROWS)
def test_row_has_a_message(cell):
    assert any(ROWS[cell].fullmatch(message) for message in MESSAGES.values())


@pytest.mark.parametrize("cell", ROWS)
def test_row_is_not_for_just_any_message(cell):
    assert not ROWS[cell].fullmatch("an argument: expected one thing, got another")


def test_messages_are_found():
    assert "jax_sa/_checks.py: …: expected an int in […, …], got …" in MESSAGES
    assert len(MESSAGES) > 100
