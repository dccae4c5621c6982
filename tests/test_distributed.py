"""Several processes, as on several hosts: a sharded decode loop over all of their devices."""

import json
import pathlib
import socket
import subprocess
import sys

import jax.numpy as jnp
import numpy as np

import jax_sa

SCRIPT = pathlib.Path(__file__).parent / "support" / "two_hosts.py"
TIMEOUT = 300


def free_port():
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return taken.getsockname()[1]


def test_two_processes(tmp_path):
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(port), str(process)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        for process in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    parts = sorted(
        (json.loads(out.splitlines()[-1]) for out, _ in outputs), key=lambda part: part["first"]
    )

    text = np.random.default_rng(0).integers(0, 3, (8, 24)).astype(np.int32)
    state = jax_sa.extend(jax_sa.init(8, 64), jnp.asarray(text), jnp.full(8, 24, jnp.int32))
    expected = jax_sa.lookup(state, max_draft=5).tokens.tolist()
    assert [part["first"] for part in parts] == [0, 4]
    assert not any(part["collective"] for part in parts)
    assert [*parts[0]["lengths"], *parts[1]["lengths"]] == [24] * 8
    assert [*parts[0]["drafts"], *parts[1]["drafts"]] == expected
    assert all(part["asked"] == expected for part in parts)
