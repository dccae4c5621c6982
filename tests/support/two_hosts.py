"""One of two processes that decode together: `python two_hosts.py PORT PROCESS`.

Prints one line of JSON: the slots that its devices hold, and their drafts and lengths.
"""

import functools
import json
import sys

import jax
import numpy as np

import jax_sa

PORT, PROCESS = int(sys.argv[1]), int(sys.argv[2])
DEVICES, SLOTS, STEPS, WIDTH = 2, 8, 6, 4

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", DEVICES)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{PORT}", num_processes=2, process_id=PROCESS)


def texts():
    return np.random.default_rng(0).integers(0, 3, (SLOTS, STEPS * WIDTH)).astype(np.int32)


def decode(state, text, lengths):
    """Appends WIDTH tokens at a time, and drafts."""

    def step(i, carry):
        state, _ = carry
        block = jax.lax.dynamic_slice_in_dim(text, WIDTH * i, WIDTH, axis=1)
        return jax_sa.extend_lookup(state, block, lengths, max_draft=5)

    return jax.lax.fori_loop(0, STEPS, step, (state, jax_sa.lookup(state, max_draft=5)))


def main():
    mesh = jax.make_mesh((2 * DEVICES,), ("data",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    def place(array):
        """Each process hands over the rows of its own devices."""
        return jax.make_array_from_callback(array.shape, split, lambda index: array[index])

    state = jax_sa.init(SLOTS, 64, sharding=split)
    arguments = place(texts()), place(np.full(SLOTS, WIDTH, np.int32))
    compiled = jax.jit(decode, donate_argnums=0).lower(state, *arguments).compile()
    collective = "all-" in compiled.as_text() or "collective-" in compiled.as_text()
    state, draft = compiled(state, *arguments)
    # Slots may be named from anywhere: the results are added up across the hosts.
    asked = jax.jit(functools.partial(jax_sa.lookup, max_draft=5))(
        state, slots=np.arange(SLOTS, dtype=np.int32)
    )

    def local(array):
        shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start)
        return np.concatenate([shard.data for shard in shards]).tolist()

    first = min(shard.index[0].start for shard in state.length.addressable_shards)
    print(
        json.dumps(
            {
                "collective": collective,
                "first": first,
                "lengths": local(state.length),
                "drafts": local(draft.tokens),
                "asked": np.asarray(asked.tokens.addressable_data(0)).tolist(),
            }
        )
    )


if __name__ == "__main__":
    main()
