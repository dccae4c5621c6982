"""The pictures show what is there: their texts, shapes and colours, without looking at pixels."""

import os
import pathlib
import re
import subprocess
import sys

import jax.numpy as jnp
import pytest

import jax_sa

figure = pytest.importorskip("matplotlib.figure")  # which needs no display
colors = pytest.importorskip("matplotlib.colors")
patches = pytest.importorskip("matplotlib.patches")
plot = pytest.importorskip("jax_sa.plot")


@pytest.fixture
def axes():
    return figure.Figure().add_subplot()


def written(axes):
    return [text.get_text() for text in axes.texts]


def colors_of(axes, kind):
    return [colors.to_hex(p.get_facecolor()) for p in axes.patches if isinstance(p, kind)]


def test_draft(axes):
    plot.draw_draft(axes, list("abxab"), ["x", "a"], match_length=2, match_end=2)
    assert written(axes) == list("abxabxa")
    assert colors_of(axes, patches.Rectangle) == [
        *[plot.BEFORE] * 2,
        plot.TEXT,
        *[plot.MATCH] * 2,
        *[plot.DRAFT] * 2,
    ]


def test_no_draft(axes):
    plot.draw_draft(axes, list("ab"), [], match_length=0, match_end=0)
    assert colors_of(axes, patches.Rectangle) == [plot.TEXT] * 2


def test_window(axes):
    plot.draw_window(axes, list("ababa"), [3, 1])
    bars = [p for p in axes.patches if colors.to_hex(p.get_facecolor()) == plot.LINK]
    assert [(bar.get_x(), bar.get_width()) for bar in bars] == [(2, 3), (4, 1)]


def test_automaton(axes):
    tokens = jnp.array([[0, 1, 2, 1, 2]], jnp.int32)
    state = jax_sa.extend(jax_sa.init(1, 8), tokens, jnp.array([5], jnp.int32))
    automaton = jax_sa.inspect_slot(state, 0)
    plot.draw_automaton(axes, automaton, name="abc".__getitem__)
    labels = ["abc"[token] for _, token, _ in automaton.edges]
    assert written(axes) == labels + [str(node) for node in range(len(automaton.links))]
    nodes = colors_of(axes, patches.Circle)
    assert [i for i, color in enumerate(nodes) if color == plot.MATCH] == automaton.window.tolist()
    arrows = [p for p in axes.patches if isinstance(p, patches.FancyArrowPatch)]
    styles = [arrow.get_linestyle() for arrow in arrows]
    assert styles.count("--") == len(automaton.links) - 1
    assert styles.count("-") == automaton.solid.sum()
    assert styles.count(":") == (~automaton.solid).sum()


def test_needs_matplotlib():
    program = "import sys; sys.modules['matplotlib'] = None\nimport jax_sa.plot"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 1
    expected = "ImportError: the package matplotlib is missing: pip install jax_sa[plot]"
    assert result.stderr.splitlines()[-1] == expected


def written_in(svg):
    return re.findall(r">([^<>\s]+)</text>", svg.read_text())


def test_figures_of_the_documents_are_those_of_states(tmp_path):
    """What is written in them, token by token and node by node; lines depend on matplotlib."""
    docs = pathlib.Path(__file__).parents[1] / "docs"
    command = [sys.executable, docs / "figures.py", tmp_path]
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    subprocess.run(command, check=True, env=environment)
    drawn = sorted(tmp_path.glob("*.svg"))
    assert {path.name for path in drawn} == {path.name for path in docs.glob("images/*.svg")}
    for path in drawn:
        assert len(written_in(path)) > 5
        assert written_in(path) == written_in(docs / "images" / path.name)
