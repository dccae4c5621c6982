"""Trains the small checkpoint that the examples use, tokenizer and MTP module included.

It learns from openly licensed source text that is installed beside this Python, and writes a
Hugging Face checkpoint directory with a model card. Needs `pip install jax_sa[tokenizer]`; a GPU
takes minutes, a CPU days:

    PYTHONPATH=examples python examples/training/train_checkpoint.py --out my_checkpoint
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
import training_corpus
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from jax_sa.llama import checkpoint, model, mtp, weights
from jax_sa.llama.config import Config
from jax_sa.llama.tokenizer import FILE as TOKENIZER_FILE

END_OF_TEXT = "<|endoftext|>"
MTP_WEIGHT = 0.3
STEPS_PER_CALL = 20
EVALUATION_CROPS = 256


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW (Loshchilov and Hutter 2019), a warmup, then a linear decay to 0."""

    learning_rate: float
    steps: int
    warmup: int = 100
    decay_mean: float = 0.9
    decay_square: float = 0.95
    weight_decay: float = 0.1
    max_norm: float = 1.0

    def init(self, params: Any) -> dict[str, Any]:
        """The moments of parameters not yet trained, and the steps made."""
        mean, square = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        return {"mean": mean, "square": square, "step": jnp.float32(0)}

    def update(self, params: Any, moments: dict[str, Any], grads: Any) -> tuple[Any, Any]:
        """Parameters and moments after one step. Only matrices decay."""
        step = moments["step"] + 1
        norm = jnp.sqrt(sum(jnp.sum(grad * grad) for grad in jax.tree.leaves(grads)))
        grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, self.max_norm / (norm + 1e-6)), grads)

        def average(rate: float, old: Any, new: Any) -> Any:
            return jax.tree.map(lambda a, b: rate * a + (1 - rate) * b, old, new)

        mean = average(self.decay_mean, moments["mean"], grads)
        square = average(self.decay_square, moments["square"], jax.tree.map(jnp.square, grads))
        warm = jnp.minimum(step / self.warmup, 1.0)
        rate = self.learning_rate * warm * jnp.maximum(1.0 - step / self.steps, 0.0)

        def move(p: jax.Array, m: jax.Array, s: jax.Array) -> jax.Array:
            m = m / (1 - self.decay_mean**step)
            s = s / (1 - self.decay_square**step)
            return p - rate * (m / (jnp.sqrt(s) + 1e-8) + self.weight_decay * (p.ndim > 1) * p)

        params = jax.tree.map(move, params, mean, square)
        return params, {"mean": mean, "square": square, "step": step}


def train_tokenizer(texts: list[str], vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer that begins every text with `END_OF_TEXT`."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    end_of_text = (END_OF_TEXT, tokenizer.token_to_id(END_OF_TEXT))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[end_of_text]
    )
    return tokenizer


def encode(tokenizer: tokenizers.Tokenizer, texts: list[str]) -> np.ndarray:
    """uint16[n] the tokens of all texts, one after the other."""
    parts = []
    for start in range(0, len(texts), 1000):
        encodings = tokenizer.encode_batch(texts[start : start + 1000])
        parts += [np.asarray(encoding.ids, np.uint16) for encoding in encodings]
    return np.concatenate([np.zeros(0, np.uint16), *parts])


def init_params(config: Config, key: jax.Array) -> Any:
    """Random parameters; what writes into the residual stream starts smaller."""
    described = weights.describe(config)
    leaves, structure = jax.tree.flatten(described)

    def init(key: jax.Array, weight: weights.Weight) -> jax.Array:
        if len(weight.shape) == 1:
            return jnp.ones(weight.shape)
        writes = weight.name.endswith(("o_proj.weight", "down_proj.weight"))
        scale = 0.02 / (2 * config.num_layers) ** 0.5 if writes else 0.02
        return scale * jax.random.normal(key, weight.shape)

    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, list(map(init, keys, leaves)))


def causal_attention(q: jax.Array, k: jax.Array, v: jax.Array, memory: None, layer: Any) -> tuple:
    """Attention within whole texts, with nothing to remember."""
    implementation = "cudnn" if jax.default_backend() == "gpu" else "xla"
    out = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=implementation)
    return out, memory


def predict(config: Config, params: Any, crops: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits [B, T, V] of the model and of its MTP module for crops int32[B, T + 2] of text."""
    # Looked up in float32: the gradient adds up rows by the token, which in bfloat16 takes a GPU
    # most of the step, since all its threads wait for the few tokens that are frequent.
    embedded = params["embed"][crops[:, :-1]].astype(jnp.bfloat16)
    embedded, next_embedded = embedded[:, :-1], embedded[:, 1:]
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    positions = jnp.broadcast_to(jnp.arange(embedded.shape[1], dtype=jnp.int32), embedded.shape[:2])
    fused = weights.fuse(config, params)
    hidden, _ = model.decode(config, fused, embedded, positions, causal_attention, None)
    ahead, _ = mtp.decode(config, fused, hidden, next_embedded, positions, causal_attention, None)

    def logits(x: jax.Array) -> jax.Array:
        # In bfloat16, or the gradient would be a float32 product, which a GPU is slow at.
        return jnp.einsum("btd,vd->btv", x, params["embed"])

    return logits(hidden), logits(ahead)


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The mean over all positions, in nats per token."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen)


def loss_of(config: Config, params: Any, crops: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The loss that training minimises, and its parts: the model's loss, the module's."""
    logits, ahead = predict(config, params, crops)
    losses = jnp.stack([cross_entropy(logits, crops[:, 1:-1]), cross_entropy(ahead, crops[:, 2:])])
    return losses[0] + MTP_WEIGHT * losses[1], losses


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=(4, 5))
def train_steps(
    config: Config,
    optimizer: Optimizer,
    batch_size: int,
    context: int,
    params: Any,
    moments: Any,
    corpus: jax.Array,
    key: jax.Array,
) -> tuple[Any, Any, jax.Array]:
    """`STEPS_PER_CALL` steps on random crops of the corpus; the mean losses."""

    def step(carry: tuple, key: jax.Array) -> tuple:
        params, moments = carry
        crops = random_crops(key, corpus, batch_size, context)
        loss = functools.partial(loss_of, config)
        grads, losses = jax.grad(loss, has_aux=True)(params, crops)
        return optimizer.update(params, moments, grads), losses

    keys = jax.random.split(key, STEPS_PER_CALL)
    (params, moments), losses = jax.lax.scan(step, (params, moments), keys)
    return params, moments, losses.mean(axis=0)


def random_crops(key: jax.Array, corpus: jax.Array, count: int, context: int) -> jax.Array:
    """int32[count, context + 2] pieces of the corpus, where it may begin anywhere."""
    starts = jax.random.randint(key, (count,), 0, corpus.shape[0] - context - 2)
    cut = functools.partial(jax.lax.dynamic_slice_in_dim, corpus, slice_size=context + 2)
    return jax.vmap(cut)(starts).astype(jnp.int32)


def evaluate(config: Config, params: Any, tokens: np.ndarray, context: int) -> dict[str, float]:
    """Loss in nats per token and share of right guesses, of the model and of its MTP module."""

    @jax.jit
    def scores(crops: jax.Array) -> jax.Array:
        predicted = predict(config, params, crops)
        targets = (crops[:, 1:-1], crops[:, 2:])
        losses = [cross_entropy(p, t) for p, t in zip(predicted, targets, strict=True)]
        # The MTP module is asked for what the model will say, not for what the text says.
        said = jnp.argmax(predicted[0], axis=-1)
        agreed = jnp.mean(jnp.argmax(predicted[1], axis=-1)[:, :-1] == said[:, 1:])
        right = jnp.mean(said == targets[0])
        return jnp.stack([*losses, right, agreed])

    count = max(8, min(EVALUATION_CROPS, len(tokens) // context // 8 * 8))
    starts = np.linspace(0, len(tokens) - context - 2, count).astype(int)
    crops = np.stack([tokens[start : start + context + 2] for start in starts]).astype(np.int32)
    batches = [scores(crops[i : i + 8]) for i in range(0, count, 8)]
    names = ("loss", "mtp_loss", "accuracy", "mtp_agreement")
    return dict(zip(names, map(float, np.mean(batches, axis=0)), strict=True))


def train(args: argparse.Namespace, config: Config, corpus: np.ndarray) -> Any:
    """Parameters after `args.steps` steps; says on the way how it goes."""
    optimizer = Optimizer(args.learning_rate, args.steps)
    key = jax.random.key(args.seed)
    params = init_params(config, key)
    moments = optimizer.init(params)
    corpus = jnp.asarray(corpus)
    begun = last = time.perf_counter()
    for step in range(STEPS_PER_CALL, args.steps + 1, STEPS_PER_CALL):
        params, moments, losses = train_steps(
            config,
            optimizer,
            args.batch_size,
            args.context,
            params,
            moments,
            corpus,
            jax.random.fold_in(key, step),
        )
        loss, mtp_loss = map(float, losses)
        now = time.perf_counter()
        rate = STEPS_PER_CALL * args.batch_size * args.context / (now - last)
        last = now
        print(
            f"step {step}/{args.steps}  loss {loss:.3f}  MTP {mtp_loss:.3f}  "
            f"{rate:,.0f} tokens/s  {now - begun:.0f} s",
            flush=True,
        )
    return params


def model_card(
    args: argparse.Namespace,
    config: Config,
    packages: list[training_corpus.Package],
    tokens: int,
    edits: int,
    figures: dict[str, dict[str, float]],
) -> str:
    """The checkpoint's README: what it is, what it learned from, how well."""
    described = weights.describe(config)
    rows = [
        f"| {package.name} | {package.version} | {package.licence} | {len(package.files)} | "
        f"{package.size / 1e6:.2f} |"
        for package in packages
    ]
    measured = [
        f"| {name} | {f['loss']:.3f} | {f['accuracy']:.1%} | {f['mtp_loss']:.3f} | "
        f"{f['mtp_agreement']:.1%} |"
        for name, f in figures.items()
    ]
    seen = args.steps * args.batch_size * args.context
    device = jax.devices()[0].device_kind
    return "\n".join(
        [
            "# A small Llama that writes Python",
            "",
            "Written by `examples/training/train_checkpoint.py`, card included. It shows "
            "speculative decoding on a real model; it is no coding assistant.",
            "",
            f"- Llama architecture, {weights.count(described) / 1e6:.2f} million parameters in "
            f"bfloat16, of which {weights.count(described['mtp']) / 1e6:.2f} million are one MTP "
            "module as in DeepSeek-V3",
            f"- {config.num_layers} layers, hidden size {config.hidden_size}, {config.num_heads} "
            f"query and {config.num_kv_heads} key/value heads, context {args.context}, tied "
            "embeddings",
            f"- byte-level BPE of {config.vocab_size} tokens, trained on the same text",
            f"- {args.steps} steps of {args.batch_size} x {args.context} tokens, {seen / 1e6:,.0f} "
            f"million in all, {seen / tokens:.1f} times the corpus; AdamW, learning rate "
            f"{args.learning_rate:g}; {device}",
            "- Licence of the weights: Apache-2.0",
            "",
            "| text | loss, nats/token | next token right | MTP loss | MTP foretells the model |",
            "|---|---|---|---|---|",
            *measured,
            "",
            f"One file in {training_corpus.ONE_HELD_BACK_OF} was held back, by the checksum of its "
            "name; files that repeat a held-back one were left out. `corpus.json` names those "
            f"held back. {edits / tokens:.0%} of the tokens are of made texts that show a piece of "
            "this code and rename something in it.",
            "",
            "## Data",
            "",
            "| package | version | licence by its metadata | files | MB |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="directory to write")
    options = {
        "steps": (8260, f"optimizer steps, a multiple of {STEPS_PER_CALL}"),
        "batch_size": (128, "texts per step"),
        "context": (1024, "tokens per text"),
        "vocab_size": (6144, "tokens of the vocabulary, at most 65536"),
        "layers": (6, "decoder layers, the MTP module's not counted"),
        "hidden_size": (256, "a multiple of 32, the size of a head"),
        "package_mb": (12, "what is taken of one package at most"),
        "corpus_mb": (300, "what is taken in all"),
        "seed": (0, "of the first parameters and the order of texts"),
    }
    for name, (default, meaning) in options.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=meaning)
    parser.add_argument("--learning_rate", type=float, default=3e-3, help="at its highest")
    args = parser.parse_args(argv)
    if args.steps < 1 or args.steps % STEPS_PER_CALL:
        parser.error(f"--steps: expected a multiple of {STEPS_PER_CALL}, got {args.steps}")
    if args.hidden_size < 64 or args.hidden_size % 64:
        parser.error(f"--hidden_size: expected a multiple of 64, got {args.hidden_size}")
    if not 300 <= args.vocab_size <= 65536:
        parser.error(f"--vocab_size: expected 300..65536, got {args.vocab_size}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Collects, trains, evaluates, writes."""
    args = parse_args(argv)
    print("reading the corpus", flush=True)
    packages = training_corpus.collect(args.package_mb * 10**6, args.corpus_mb * 10**6)
    train_files, held_back_files = training_corpus.split(packages)
    print(
        f"{len(train_files)} files of {len(packages)} packages, "
        f"{sum(len(file.text) for file in train_files) / 1e6:.1f} MB; "
        f"{len(held_back_files)} held back; training the tokenizer",
        flush=True,
    )
    texts = [file.text for file in train_files]
    tokenizer = train_tokenizer(texts[::4], args.vocab_size)
    edits = encode(tokenizer, list(training_corpus.code_edits(train_files, args.seed)))
    corpus = np.concatenate([encode(tokenizer, texts), edits])
    held_back = encode(tokenizer, [file.text for file in held_back_files])
    print(f"{len(corpus):,} tokens to train on, {len(held_back):,} held back", flush=True)
    if len(held_back) < args.context + 2:
        print("error: too little was held back to evaluate on; take more", file=sys.stderr)
        return 2

    config = Config(
        architecture="LlamaForCausalLM",
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        intermediate_size=3 * args.hidden_size,
        num_layers=args.layers,
        num_heads=args.hidden_size // 32,
        num_kv_heads=args.hidden_size // 64,
        head_dim=32,
        max_position_embeddings=args.context,
        tied=True,
        num_mtp=1,
        eos_tokens=(tokenizer.token_to_id(END_OF_TEXT),),
    )
    params = train(args, config, corpus)
    figures = {
        name: evaluate(config, params, tokens, args.context)
        for name, tokens in (("trained on", corpus), ("held back", held_back))
    }
    for name, values in figures.items():
        print(name, ", ".join(f"{key} {value:.3f}" for key, value in values.items()))

    checkpoint.save(args.out, config, params)
    tokenizer.save(str(args.out / TOKENIZER_FILE), pretty=False)
    card = model_card(args, config, packages, len(corpus), len(edits), figures)
    (args.out / "README.md").write_text(card, encoding="utf-8")
    names = {"held_back": [file.name for file in held_back_files]}
    (args.out / "corpus.json").write_text(json.dumps(names, indent=0) + "\n", encoding="utf-8")
    print(f"written: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
