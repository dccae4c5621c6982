"""Pictures of texts, drafts and automata, on axes of matplotlib (`pip install jax_sa[plot]`)."""

from collections.abc import Callable, Sequence
from typing import Any

from jax_sa.inspection import Automaton

try:
    from matplotlib.axes import Axes
    from matplotlib.patches import Circle, FancyArrowPatch, Rectangle
except ImportError as error:
    raise ImportError("the package matplotlib is missing: pip install jax_sa[plot]") from error

TEXT, MATCH, BEFORE, DRAFT = "#f2f2f2", "#ffb45c", "#ffe3bd", "#7fcf8f"
"""The colours of a token: any, of the matched suffix, of its earlier occurrence, drafted."""

EDGE, LINK = "#444444", "#3b6fd4"
"""The colours of edges and of suffix links."""


def draw_draft(
    axes: Axes,
    text: Sequence[str],
    draft: Sequence[str],
    *,
    match_length: int,
    match_end: int,
    size: float = 9,
) -> None:
    """A text, the suffix that occurred before, there and here, and the tokens drafted after it.

    Args:
      axes: to draw on; a token is one unit wide.
      text: what to write for each token of the text.
      draft: what to write for each drafted token.
      match_length: of the row's `Draft`, from the row's own text.
      match_end: of the row's `Draft`.
      size: of the letters, in points.
    """
    begin = len(text) - match_length
    for i, name in enumerate([*text, *draft]):
        if i >= len(text):
            color = DRAFT
        elif i >= begin:
            color = MATCH
        else:
            color = BEFORE if match_end - match_length <= i < match_end else TEXT
        _draw_token(axes, i, 0, name, color, size)
    axes.set(xlim=(0, max(len(text) + len(draft), 1)), ylim=(0, 1))
    axes.axis("off")


def draw_window(
    axes: Axes, text: Sequence[str], lengths: Sequence[int], *, size: float = 9
) -> None:
    """A text, and below it the suffixes in its window, longest first, each as long as it is.

    Args:
      axes: to draw on; a token is one unit wide.
      text: what to write for each token.
      lengths: tokens of each suffix, as `automaton.lengths[automaton.window]` has them.
      size: of the letters, in points.
    """
    for i, name in enumerate(text):
        _draw_token(
            axes, i, 0, name, MATCH if i >= len(text) - max(lengths, default=0) else TEXT, size
        )
    for row, length in enumerate(lengths):
        bar = Rectangle((len(text) - length, -0.3 * (row + 1)), length, 0.18, color=LINK)
        axes.add_patch(bar)
    axes.set(xlim=(0, max(len(text), 1)), ylim=(-0.3 * max(len(lengths), 1) - 0.1, 1))
    axes.axis("off")


def draw_automaton(
    axes: Axes, automaton: Automaton, *, name: Callable[[int], str] = str, size: float = 10
) -> None:
    """The nodes, edges and suffix links of a small automaton, of up to about 20 tokens.

    A node stands as far to the right as its longest string has tokens: the text's prefixes on one
    line, clones below it. Edges are solid lines where they lead to a node one token longer, else
    dotted ones; suffix links are dashed and lead to the left. Nodes of the window are coloured.

    Args:
      axes: to draw on.
      automaton: as `jax_sa.inspect_slot` returns it.
      name: what to write for a token.
      size: of the letters, in points.
    """
    circles = [Circle(place, _RADIUS, edgecolor=EDGE, zorder=3) for place in _places(automaton)]
    heights = [circle.center[1] for circle in circles]
    for (source, token, target), solid in zip(automaton.edges, automaton.solid, strict=True):
        ends = circles[source], circles[target]
        bend = _bend(*ends)
        _draw_arrow(axes, *ends, bend, EDGE, "-" if solid else ":")
        x, y = _middle(*ends, bend)
        heights.append(y)
        axes.text(x, y, name(int(token)), size=size, ha="center", va="center", **_LABEL)
    for node, link in enumerate(automaton.links):
        if link >= 0:
            ends = circles[node], circles[link]
            _draw_arrow(axes, *ends, _LINK_BEND, LINK, "--")
            heights.append(_middle(*ends, _LINK_BEND)[1])
    for node, circle in enumerate(circles):
        circle.set_facecolor(MATCH if node in automaton.window else "white")
        axes.add_patch(circle)
        axes.text(*circle.center, str(node), size=size, ha="center", va="center", zorder=4)
    axes.set(
        xlim=(-0.5, len(automaton.tokens) + 0.5), ylim=(min(heights) - 0.4, max(heights) + 0.4)
    )
    axes.set_aspect("equal")
    axes.axis("off")


_RADIUS = 0.2
_LINK_BEND = -0.25
_LABEL: dict[str, Any] = {
    "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.5},
    "zorder": 2,
}


def _draw_token(axes: Axes, x: float, y: float, name: str, color: str, size: float) -> None:
    axes.add_patch(Rectangle((x, y), 1, 1, facecolor=color, edgecolor="white"))
    axes.text(x + 0.5, y + 0.5, name, size=size, ha="center", va="center", family="monospace")


def _places(automaton: Automaton) -> list[tuple[float, float]]:
    """Where each node stands."""
    count = len(automaton.tokens)
    places = [(float(i), 0.0) for i in range(count + 1)]
    lanes: dict[int, int] = {}
    for length in automaton.lengths[count + 1 :].tolist():
        lanes[length] = lanes.get(length, 0) + 1
        places.append((float(length), -1.5 * lanes[length]))
    return places


def _bend(source: Circle, target: Circle) -> float:
    """How far an edge bends: between neighbours on a line not at all, over other nodes a lot."""
    (x0, y0), (x1, y1) = source.center, target.center
    if y0 != y1:
        return -0.15
    return 0.0 if x1 - x0 == 1 else -0.4


def _draw_arrow(
    axes: Axes, source: Circle, target: Circle, bend: float, color: str, style: str
) -> None:
    arrow = FancyArrowPatch(
        source.center,
        target.center,
        patchA=source,
        patchB=target,
        connectionstyle=f"arc3,rad={bend}",
        arrowstyle="-|>",
        mutation_scale=8,
        linestyle=style,
        color=color,
        shrinkA=0,
        shrinkB=0,
        linewidth=1,
        zorder=1,
    )
    axes.add_patch(arrow)


def _middle(source: Circle, target: Circle, bend: float) -> tuple[float, float]:
    """The middle of an arc: of a quadratic curve, half as far out as its control point."""
    (x0, y0), (x1, y1) = source.center, target.center
    return (x0 + x1) / 2 + bend * (y1 - y0) / 2, (y0 + y1) / 2 - bend * (x1 - x0) / 2
