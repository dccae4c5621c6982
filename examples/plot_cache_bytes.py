"""Plot what the caches of DeepSeek-V4 models take, by part, against the length of the context.

Needs matplotlib (`pip install jax_sa[plot]`):

    python examples/plot_cache_bytes.py docs/images/cache_bytes.png
"""

import argparse

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from jax_sa.cache_schema import CacheLayout, dsv4_flash, dsv4_pro, plan

PARTS = {
    "CSA KV pages": ("csa_kv",),
    "CSA indexer pages": ("csa_indexer",),
    "HCA KV pages": ("hca_kv",),
    "SWA rings": ("swa_ring",),
    "compressor state": ("csa_state", "csa_indexer_state", "hca_state"),
}


def bytes_by_part(config, context_tokens, requests, layout):
    """Bytes of each line of the plot, at one context length."""
    # What fits is not asked here: any memory will do.
    made = plan(config, 1, context_tokens=context_tokens, requests=requests, layout=layout)
    (stage,) = made.stages
    of_part = {part.name: part.bytes for part in stage.parts}
    sizes = {title: sum(of_part[name] for name in names) for title, names in PARTS.items()}
    return sizes | {"suffix automaton": stage.automaton_bytes, "total": stage.total_bytes}


def main():
    """Plot both models side by side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", help="image to write; its suffix decides the format")
    parser.add_argument("--requests", type=int, default=64, help="concurrent requests (default 64)")
    parser.add_argument("--kv", default="fp8", help="layout of main KV entries (default fp8)")
    parser.add_argument("--indexer", default="fp8", help="layout of indexer entries (default fp8)")
    args = parser.parse_args()

    layout = CacheLayout(args.kv, args.indexer)
    contexts = [2**power for power in range(10, 21)]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    models = {"DeepSeek-V4-Flash": dsv4_flash(), "DeepSeek-V4-Pro": dsv4_pro()}
    for axis, (title, config) in zip(axes, models.items(), strict=True):
        sizes = [bytes_by_part(config, context, args.requests, layout) for context in contexts]
        for name in sizes[0]:
            style = {"color": "black", "linewidth": 2.5} if name == "total" else {}
            axis.plot(contexts, [size[name] / 2**30 for size in sizes], label=name, **style)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(contexts[::2], [f"{context // 1024}K" for context in contexts[::2]])
        axis.set_xlabel("context, tokens")
        axis.set_title(
            f"{title}, {args.requests} requests, KV {args.kv}, indexer {args.indexer}", fontsize=10
        )
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("GiB")
    axes[1].legend(loc="upper left", fontsize=8)
    figure.savefig(args.output, dpi=90)


if __name__ == "__main__":
    main()
