"""Requests that come and go while others are being decoded, in one program, with drafts.

    python examples/continuous_batching.py

Requests arrive while others run, and wait until a slot is free. The model is a stand-in: it recites
the answer that a request should have. All else is what an engine does. Prints what happens at each
step, and what the drafts saved; fails if an answer is not the model's own, token for token.
"""

import argparse
import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp

import jax_sa
from jax_sa._table import format_table

CODE = """def area(shape):
    if shape.kind == "circle":
        return math.pi * shape.radius ** 2
    if shape.kind == "square":
        return shape.side ** 2
"""
TABLE = "id,name,city\n" + "".join(f"{i},user{i},Berlin\n" for i in range(1, 6))
ARRIVALS = [  # before which step, name, prompt, answer
    (0, "rename", f"Rename shape to figure.\n{CODE}", CODE.replace("shape", "figure")),
    (0, "refrain", "Sing the refrain four times.\n", "to be or not to be, " * 4),
    (3, "proverb", "Write a proverb.\n", "A watched pot never boils; haste makes waste."),
    (5, "table", f"Move them to Paris.\n{TABLE}", TABLE.replace("Berlin", "Paris")),
    (6, "comment", f"Say what it does.\n{CODE}", CODE.replace(":\n", ":  # of a shape\n", 1)),
    (70, "late", f"Print this.\n{TABLE}", TABLE),
]
END = 0  # the token that ends an answer
LONGEST = 256  # answer, its end included


@functools.partial(jax.jit, donate_argnames="read")
def decode_step(answers, read, draft, slots):
    """One step of the stand-in model for a batch: verifies its drafts, and keeps its cache.

    Args:
      answers: int32[S, N] what the model recites for the request of each slot.
      read: int32[S] how far it is: its cache.
      draft: of B rows.
      slots: int32[B]; -1 for a row without a request.
    """
    slot = jnp.maximum(slots, 0)
    block = read[slot][:, None] + jnp.arange(1 + draft.tokens.shape[1], dtype=jnp.int32)[None]
    accepted = jax_sa.accept_greedy(draft, answers[slot[:, None], block])
    length = jnp.where(slots >= 0, accepted.length, 0)
    return dataclasses.replace(accepted, length=length), read.at[slot].add(length)


@dataclasses.dataclass
class Request:
    """What the engine knows of a request that runs."""

    name: str
    tokens: list[int] = dataclasses.field(default_factory=list)
    """Of the answer so far."""
    steps: int = 0


class Engine:
    """The requests that run, the model's arrays for them, and their automata."""

    def __init__(self, config, max_num_requests):
        self.manager = jax_sa.SuffixAutomatonManager(config, max_num_requests)
        self.answers = jnp.zeros((config.max_slots, LONGEST + config.max_draft), jnp.int32)
        self.read = jnp.zeros(config.max_slots, jnp.int32)
        self.running = []

    @property
    def has_room(self):
        """Whether a slot and a row of the batch are free."""
        return self.manager.num_free_slots and len(self.running) < self.manager.max_num_requests

    def add(self, name, prompt, answer):
        """Takes a request in; the others of the batch need not notice."""
        slot = self.manager.add_request(name, encode(prompt))
        recited = encode(answer) + [END] * (self.answers.shape[1] - len(encode(answer)))
        self.answers = self.answers.at[slot].set(jnp.asarray(recited, jnp.int32))
        self.read = self.read.at[slot].set(0)
        self.running.append(Request(name))
        self._batch_changed()
        return slot

    def step(self):
        """Decodes one step of every request; returns those that it finished."""
        accepted, self.read = decode_step(self.answers, self.read, self.draft, self.slots)
        self.draft = self.manager.extend(accepted.tokens, accepted.length)
        tokens, lengths = jax.device_get((accepted.tokens, accepted.length))
        for request, new, length in zip(self.running, tokens, lengths, strict=False):
            request.tokens += new[:length].tolist()
            request.steps += 1
        finished = [request for request in self.running if END in request.tokens]
        for request in finished:
            del request.tokens[request.tokens.index(END) + 1 :]
            self.manager.remove_request(request.name)
            self.running.remove(request)
        if finished:
            self._batch_changed()
        return finished

    def _batch_changed(self):
        self.slots = self.manager.prepare([request.name for request in self.running])
        self.draft = self.manager.lookup()


def encode(text):
    """The tokens of a text: its bytes."""
    return list(text.encode())


def serve(engine):
    """Runs `ARRIVALS` to their ends, and says so as they come and go; the requests."""
    waiting, done, step = list(ARRIVALS), [], 0
    while waiting or engine.running:
        while waiting and waiting[0][0] <= step and engine.has_room:
            _, name, prompt, answer = waiting.pop(0)
            slot = engine.add(name, prompt, answer)
            print(f"step {step:3}: {name} comes, to slot {slot}; {len(engine.running)} running")
        finished = engine.step() if engine.running else []
        step += 1
        for request in finished:
            print(f"step {step:3}: {request.name} is done; {len(engine.running)} running")
        done += finished
    return done


def main():
    """Serves, and prints what the drafts saved."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, default=3, help="requests at a time (default: 3)")
    parser.add_argument("--max-draft", type=int, default=8, help="tokens (default: 8)")
    args = parser.parse_args()
    try:
        config = jax_sa.SAConfig(max_seq_len=1024, max_slots=args.slots, max_draft=args.max_draft)
    except ValueError as error:
        parser.error(str(error))

    done = serve(Engine(config, max_num_requests=args.slots))
    rows = [[r.name, len(r.tokens), r.steps, len(r.tokens) / r.steps] for r in done]
    print()
    print(format_table(["request", "tokens", "steps", "tokens per step"], rows))
    wanted = {name: encode(answer) for _, name, _, answer in ARRIVALS}
    wrong = [r.name for r in done if r.tokens[:-1] != wanted[r.name]]
    if wrong:
        sys.exit(f"error: not the model's own answer: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
