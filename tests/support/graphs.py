"""The CUDA graphs of a compiled decoder, as XLA's dump of its thunks shows them."""

import itertools
import re


def compiled_stages(dumps):
    """The lines of each stage of a decoder's loop: of a packed one the steps, and the prompts."""
    (dump,) = dumps.glob("*thunk_sequence_after_thunk_passes.txt")
    *stages, _ = branches(dump.read_text())  # the last does nothing
    return stages


def branches(thunks):
    """The lines of each branch of a program's first choice."""
    lines = thunks.splitlines()
    (choice, *_) = (n for n, line in enumerate(lines) if re.match(r" *\d+: kConditional", line))
    lines = lines_below(lines, choice)
    label = re.match(r" *branch_", lines[0])[0]
    starts = [number for number, line in enumerate(lines) if line.startswith(label)]
    return [lines[start + 1 : end] for start, end in itertools.pairwise([*starts, len(lines)])]


def lines_below(lines, start):
    """Those of the thunk that begins with this line, but for the line itself."""
    indent = len(lines[start]) - len(lines[start].lstrip())
    for end in range(start + 1, len(lines)):
        thunk = re.match(r"( *)\d+: k", lines[end])
        if thunk and len(thunk[1]) <= indent:
            return lines[start + 1 : end]
    return lines[start + 1 :]


def launches(lines):
    """The thunks that launch something."""
    return [line for line in lines if re.match(r" *\d+: k(?!CommandBuffer|Conditional)", line)]


def is_one_graph(stage):
    """Whether all that a stage launches is in one CUDA graph, without a choice in it."""
    graphs = [number for number, line in enumerate(stage) if "kCommandBuffer" in line]
    if len(graphs) != 1 or any("kConditional" in line for line in stage):
        return False
    return launches(lines_below(stage, graphs[0])) == launches(stage)
