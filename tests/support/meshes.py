"""Meshes of several devices: of GPUs where there are two at least, else of virtual CPU devices."""

import jax
import numpy as np
from jax.sharding import AxisType

MESHES = {
    "auto": ((4,), ("data",), AxisType.Auto),
    "explicit": ((4,), ("data",), AxisType.Explicit),
    "auto 2x2": ((2, 2), ("data", "model"), AxisType.Auto),
    "explicit 2x2": ((2, 2), ("data", "model"), AxisType.Explicit),
}


def make_mesh(name="auto"):
    shape, axes, kind = MESHES[name]
    devices = jax.devices() if len(jax.devices()) > 1 else jax.local_devices(backend="cpu")
    if len(devices) < 4:  # two GPUs
        shape = (2,) if len(shape) == 1 else (2, 1)
    count = int(np.prod(shape))
    return jax.make_mesh(shape, axes, axis_types=(kind,) * len(axes), devices=devices[:count])
