"""Registers the FFI handlers with XLA. No other module knows how they are built or named."""

import dataclasses
import functools
import importlib
import pathlib
import re
from types import ModuleType

import jax
import jax.extend.backend
import jaxlib

_OLDEST_FFI_VERSION = (0, 3)
"""Of the oldest jaxlib supported, which `pyproject.toml` pins to build with."""

_MODULES = {"cpu": "jax_sa._cpu", "CUDA": "jax_sa._cuda"}


@dataclasses.dataclass(frozen=True)
class Platform:
    """The handlers of one XLA platform, or why there are none."""

    name: str
    handlers: tuple[str, ...]
    problem: str | None


def target_name(op: str) -> str:
    """The name under which an op's handlers are registered on every platform."""
    return f"jax_sa_{op}"


@functools.cache
def platforms() -> tuple[Platform, ...]:
    """Registers the handlers of every platform they were built for; says what came of it."""
    return tuple(_register(platform, module) for platform, module in _MODULES.items())


def _register(platform: str, module_name: str) -> Platform:
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError:
        return Platform(
            platform,
            (),
            "not built: no nvcc was found at install time, or JAX_SA_CUDA=OFF"
            if platform == "CUDA"
            else "not built",
        )
    except ImportError as error:
        return Platform(platform, (), f"does not load: {error}")
    if problem := _version_problem(module):
        return Platform(platform, (), problem)
    for op, handler in module.handlers.items():
        jax.ffi.register_ffi_target(target_name(op), handler, platform=platform)
    return Platform(platform, tuple(sorted(module.handlers)), None)


def _version_problem(module: ModuleType) -> str | None:
    """Why XLA would refuse the handlers: on a CPU it takes all of JAX down with them."""
    built, runtime = module.ffi_version, _runtime_ffi_version()
    if built <= runtime:
        return None
    # An ordinary install builds for the oldest FFI supported. Where even that is too new, another
    # install changes nothing.
    what_helps = (
        "upgrade jaxlib" if runtime < _OLDEST_FFI_VERSION else "reinstall jax_sa, or upgrade jaxlib"
    )
    return (
        f"built for XLA FFI {built[0]}.{built[1]}, but jaxlib {jaxlib.__version__} has "
        f"{runtime[0]}.{runtime[1]}: {what_helps}"
    )


def _runtime_ffi_version() -> tuple[int, int]:
    header = pathlib.Path(jaxlib.__file__).parent / "include/xla/ffi/api/c_api.h"
    text = header.read_text()
    major, minor = (
        int(re.search(rf"#define XLA_FFI_API_{part} (\d+)", text)[1]) for part in ("MAJOR", "MINOR")
    )
    return major, minor


def unusable_reason(backend: str) -> str | None:
    """Why no handlers are usable on one of JAX's backends; None where they are.

    Args:
      backend: as `jax.default_backend()` names it; "gpu" is CUDA or ROCm.
    """
    name = "CUDA" if backend in ("gpu", "cuda") else backend
    if (
        backend == "gpu"
        and "rocm" in jax.extend.backend.get_backend("gpu").platform_version.lower()
    ):
        name = "ROCm"
    for platform in platforms():
        if platform.name == name:
            return platform.problem and f"on {name}, the handlers are {platform.problem}"
    return f"jax_sa has no handlers for {name}"
