"""The figures of ways of drafting on the same prompts, as a report for machines and as tables."""

import sys
from typing import Any

import jax
from engine import Engine, Mode, Result

from jax_sa.cli.progress import ProgressBar
from jax_sa.cli.table import format_table


def measure(engine: Engine, modes: list[Mode]) -> dict[str, Any]:
    """Runs every mode on every prompt.

    Returns:
      A report that JSON can hold: how it was run; figures by mode, and by group of prompts; what
      was written to each prompt; and, beside a mode without drafts at temperature 0, where the
      others wrote something else.
    """
    results: dict[str, list[Result]] = {}
    seconds: dict[str, list[float]] = {}
    for mode in modes:
        results[mode.name], seconds[mode.name] = _run(engine, mode)
    args = engine.args
    groups = [text.prompt.group for text in engine.texts]
    expected = results.get("none") if args.temperature == 0 else None
    return {
        "device": jax.devices()[0].device_kind,
        "batch_size": args.batch_size,
        "tp_size": args.tp_size,
        "dtype": args.dtype,
        "temperature": args.temperature,
        "prompts": len(engine.texts),
        "modes": {
            name: figures(results[name], sum(seconds[name]))
            | {"identical": expected and _identical(results[name], expected)}
            for name in results
        },
        "groups": {
            group: {
                # A batch is of one group only where it is of one prompt.
                name: figures(
                    _of_group(results[name], groups, group),
                    sum(_of_group(seconds[name], groups, group)) if args.batch_size == 1 else None,
                )
                for name in results
            }
            for group in dict.fromkeys(groups)
        },
        "differences": _differences(engine, results) if expected else [],
        "written": _written(engine, results),
    }


def _run(engine: Engine, mode: Mode) -> tuple[list[Result], list[float]]:
    """The results of all prompts, and the seconds of each batch, without compilation."""
    batches = engine.batches()
    print(f"{mode.name}: compiling, measuring steps", file=sys.stderr, flush=True)
    engine.prepare(mode)
    progress = ProgressBar(len(batches), f"batches, {mode.name}")
    results, seconds = [], []
    for batch in batches:
        written, elapsed = engine.generate(mode, batch)
        results += written
        seconds.append(elapsed)
        progress.advance(1)
    return results, seconds


def _of_group(values: list[Any], groups: list[str], group: str) -> list[Any]:
    return [value for value, its in zip(values, groups, strict=True) if its == group]


def figures(results: list[Result], seconds: float | None) -> dict[str, float | None]:
    """The counts of some results, and their ratios; None where there is nothing to divide by."""
    tokens = sum(len(result.tokens) for result in results)
    drafted = sum(result.drafted for result in results)
    accepted = sum(result.accepted for result in results)
    return {
        "tokens": tokens,
        "tokens_per_step": tokens / max(sum(result.steps for result in results), 1),
        "acceptance_rate": accepted / drafted if drafted else None,
        "tokens_per_second": tokens / seconds if seconds else None,
    }


def _identical(results: list[Result], expected: list[Result]) -> int:
    """The number of prompts that came to the same text."""
    return sum(a.tokens == b.tokens for a, b in zip(results, expected, strict=True))


def _differences(engine: Engine, results: dict[str, list[Result]]) -> list[dict[str, Any]]:
    """Where a mode left the plain text, and how close a call the model's choice was there."""
    found = []
    for name, of_mode in results.items():
        triples = zip(engine.texts, results["none"], of_mode, strict=True)
        for index, (text, plain, other) in enumerate(triples):
            if plain.tokens == other.tokens:
                continue
            pairs = list(zip(plain.tokens, other.tokens, strict=False))
            at = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
            gap = None
            if at < len(pairs):
                if not found:
                    print("differences: compiling", file=sys.stderr, flush=True)
                gap = engine.logit_gap(text.tokens + plain.tokens[:at], *pairs[at])
            found.append({"mode": name, "prompt": index, "token": at, "logit_gap": gap})
    return found


def _written(engine: Engine, results: dict[str, list[Result]]) -> list[dict[str, Any]]:
    """Each prompt, and the text and the tokens that each mode wrote after it."""
    return [
        {
            "group": text.prompt.group,
            "prompt": text.prompt.text,
            "modes": {
                name: {
                    "text": engine.tokenizer.decode(of_mode[index].tokens),
                    "tokens": list(of_mode[index].tokens),
                }
                for name, of_mode in results.items()
            },
        }
        for index, text in enumerate(engine.texts)
    ]


def format_report(report: dict[str, Any]) -> str:
    """One written text of each group of prompts, the tables, and the differences, for people."""
    parts = [*_samples(report), _table_of_modes(report)]
    names = list(report["modes"])
    for title, key in (("tokens/step", "tokens_per_step"), ("tokens/s", "tokens_per_second")):
        rows = [
            [group, *(by_mode[name][key] for name in names)]
            for group, by_mode in report["groups"].items()
        ]
        if rows[0][1] is not None:
            parts.append(format_table([title, *names], rows))
    parts += [
        f"{d['mode']}: prompt {d['prompt']} differs from token {d['token']} on"
        + ("" if d["logit_gap"] is None else f", where the logits differ by {d['logit_gap']:.1e}")
        for d in report["differences"]
    ]
    return "\n\n".join(parts)


def _samples(report: dict[str, Any]) -> list[str]:
    """The first prompt of each group, and the text that the last mode wrote after it."""
    first = {}
    for entry in report["written"]:
        first.setdefault(entry["group"], entry)
    name = list(report["modes"])[-1]
    return [
        f"{heading(entry['group'], entry['prompt'])}\n{entry['modes'][name]['text']}"
        for entry in first.values()
    ]


def heading(group: str, prompt: str) -> str:
    """The end of a prompt, as lines that stand before the text written after it."""
    lines = [line if len(line) <= 78 else line[:75] + "..." for line in prompt.splitlines()[-3:]]
    return "\n".join([f"--- {group} ---", *(f"| {line}" for line in lines)])


def _table_of_modes(report: dict[str, Any]) -> str:
    plain = report["modes"]["none"]["tokens_per_second"]
    rows = [
        [
            name,
            its["tokens_per_step"],
            percent(its["acceptance_rate"]),
            f"{its['tokens_per_second']:.0f}",
            f"{its['tokens_per_second'] / plain:.2f}x",
            "sampled" if its["identical"] is None else f"{its['identical']}/{report['prompts']}",
        ]
        for name, its in report["modes"].items()
    ]
    headers = ["drafts", "tokens/step", "accepted", "tokens/s", "speed", "identical"]
    return format_table(headers, rows)


def percent(share: float | None) -> str:
    """A share for people; a dash where there is none."""
    return "-" if share is None else f"{share:.0%}"
