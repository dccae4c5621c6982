"""A checkpoint that writes on after prompts, a batch at a time, with drafts or without."""

import argparse
import dataclasses
import functools
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from prompt_file import Prompt, encode, pad, read_prompts

import jax_sa
from jax_sa.calibration import CALIBRATION_TOKENS
from jax_sa.cli.pool import load_pool
from jax_sa.llama import checkpoint, model
from jax_sa.llama.chat import ChatTemplate
from jax_sa.llama.drafter import mtp_drafter
from jax_sa.llama.tokenizer import Tokenizer
from jax_sa.llama.weights import AXIS

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Mode:
    """Where drafts come from."""

    use_sa: bool
    mtp_tokens: int
    """Tokens that the MTP module drafts; 0: none."""

    @property
    def name(self) -> str:
        """Its name in tables: none, MTP, SA or SA+MTP."""
        return "+".join(["SA"] * self.use_sa + ["MTP"] * (self.mtp_tokens > 0)) or "none"


@dataclasses.dataclass(frozen=True)
class Text:
    """One prompt as the model reads it."""

    prompt: Prompt
    tokens: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Result:
    """The tokens that one prompt led to in one mode, and the steps they took."""

    tokens: tuple[int, ...]
    steps: int
    drafted: int
    accepted: int


class Engine:
    """A checkpoint, ready to generate from batches of prompts of one static shape."""

    def __init__(self, args: argparse.Namespace):
        """Loads `args.model`; ValueError of one line if it, or an option, is no good."""
        self.args = args
        self.mesh = make_mesh(args.tp_size)
        self.dtype = DTYPES[args.dtype]
        self.config, self.params = checkpoint.load(args.model, self.dtype, self.mesh)
        self.tokenizer = Tokenizer(args.model)
        self._chat = ChatTemplate(args.model) if args.chat else None
        prompts = [Prompt("prompt", args.prompt)] if args.prompt else read_prompts(args.prompts)
        self.texts = [self._read(prompt) for prompt in prompts]
        self.width = max(len(text.tokens) for text in self.texts)
        self.size = self.width + args.max_new_tokens
        self._check_size()
        self.pool = None if args.pool is None else load_pool("--pool", args.pool)
        # One object each: a decoder is compiled anew for another function.
        self._model = functools.partial(model.apply, self.config)
        self._decoder = functools.cache(self._make_decoder)
        self._costs: dict[Mode, jax.Array] = {}

    def _read(self, prompt: Prompt) -> Text:
        tokens = encode(prompt, self.tokenizer, self._chat)
        if not tokens or max(tokens) >= self.config.vocab_size:
            raise ValueError(f"{self.args.model}: the tokenizer is not the model's")
        return Text(prompt, tuple(tokens))

    def _check_size(self) -> None:
        """Raises ValueError unless the model can read the longest prompt and what follows it."""
        longest = self.config.max_position_embeddings
        room = longest - self.width
        if room < 1:
            raise ValueError(
                f"prompts: expected at most {longest - 1} tokens, because the model reads "
                f"{longest}, got {self.width}"
            )
        if self.args.max_new_tokens > room:
            raise ValueError(
                f"--max_new_tokens: expected at most {room}, because the model reads {longest} "
                f"tokens and the longest prompt has {self.width}, got {self.args.max_new_tokens}"
            )

    def _make_decoder(self, mode: Mode) -> jax_sa.Decoder:
        return jax_sa.Decoder(
            self._model,
            drafter=mtp_drafter(self.config, mode.mtp_tokens) if mode.mtp_tokens else None,
            stop_tokens=self.config.eos_tokens,
            threshold=self.args.sa_spec_threshold,
            follow_neural=self.args.sa_spec_follow,
            max_draft=self.args.max_draft,
            min_match=self.args.min_match,
            draft_factor=self.args.draft_factor,
        )

    def batches(self) -> list[list[Text]]:
        """The prompts, `batch_size` at a time."""
        size = self.args.batch_size
        return [self.texts[i : i + size] for i in range(0, len(self.texts), size)]

    def arguments(self, mode: Mode, batch: list[Text]) -> dict[str, Any]:
        """The arguments of a decoder's `init` and `generate`. Rows without a prompt are idle."""
        args, rows = self.args, self.args.batch_size
        prompts, lengths = pad([text.tokens for text in batch], rows, self.width)
        sampling = None
        if args.temperature > 0:
            key = jax.random.key(args.seed)
            sampling = jax_sa.Sampling(key, args.temperature, args.top_k, args.top_p)
        return {
            "params": self.params,
            "prompts": prompts,
            "prompt_lengths": lengths,
            "cache": model.init_cache(
                self.config,
                rows,
                self.size,
                self.dtype,
                mtp=mode.mtp_tokens > 0,
                mesh=self.mesh,
            ),
            "state": jax_sa.init(rows, self.size) if mode.use_sa else None,
            "pool": self.pool if mode.use_sa else None,
            "max_new_tokens": args.max_new_tokens,
            "sampling": sampling,
        }

    def prepare(self, mode: Mode) -> None:
        """Compiles what `generate` runs and measures the costs of its steps, or estimates them."""
        batch = self.batches()[0]
        if self.args.max_new_tokens < CALIBRATION_TOKENS:
            self.generate(mode, batch)
            return
        measured = self._decoder(mode).calibrate(**self.arguments(mode, batch))
        self._costs[mode] = measured.costs

    def generate(self, mode: Mode, batch: list[Text]) -> tuple[list[Result], float]:
        """Generates on the device, without the host's help: the results, and the seconds taken."""
        arguments = jax.block_until_ready(self.arguments(mode, batch))
        costs = self._costs.get(mode)
        begun = time.perf_counter()
        done = jax.block_until_ready(self._decoder(mode).generate(**arguments, costs=costs))
        seconds = time.perf_counter() - begun
        return results(done, len(batch)), seconds

    def stream(
        self, mode: Mode, batch: list[Text]
    ) -> Iterator[tuple[jax_sa.Generation, jax_sa.Accepted]]:
        """Generates step by step: after each, the generation so far, and what the step emitted.

        The next step donates the generation: only the last is there to be kept.
        """
        decoder = self._decoder(mode)
        arguments = self.arguments(mode, batch)
        generation = decoder.init(**arguments)
        while not generation.finished.all():
            generation, emitted = decoder.step(self.params, generation, pool=arguments["pool"])
            yield generation, emitted

    def logit_gap(self, text: tuple[int, ...], one: int, other: int) -> float:
        """By how much the logits of two tokens differ that could follow a text."""
        tokens = np.zeros((1, self.size), np.int32)
        tokens[0, : len(text)] = text
        cache = model.init_cache(self.config, 1, self.size, self.dtype, mtp=False, mesh=self.mesh)
        logits, _ = jax.jit(self._model)(self.params, jnp.asarray(tokens), cache)
        after = np.asarray(logits[0, len(text) - 1])
        return float(abs(after[one] - after[other]))


def results(generation: jax_sa.Generation, rows: int) -> list[Result]:
    """The results of the first `rows` rows of a generation."""
    tokens, lengths = np.asarray(generation.tokens), np.asarray(generation.lengths)
    counts = np.stack([generation.steps, generation.drafted, generation.accepted], axis=1)
    return [
        Result(tuple(tokens[row, : lengths[row]].tolist()), *counts[row].tolist())
        for row in range(rows)
    ]


def make_mesh(tp_size: int) -> jax.sharding.Mesh | None:
    """The first `tp_size` devices; None for one."""
    devices = jax.devices()
    if tp_size > len(devices):
        raise ValueError(
            f"tp_size: expected at most the {len(devices)} devices there are, got {tp_size} "
            "(JAX_NUM_CPU_DEVICES sets how many a CPU counts as)"
        )
    return jax.sharding.Mesh(np.array(devices[:tp_size]), (AXIS,)) if tp_size > 1 else None
