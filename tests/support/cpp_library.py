"""Shared libraries of C++ made for a test, from sources beside this file."""

import ctypes
import pathlib
import shutil
import subprocess

from requirements import unavailable

HERE = pathlib.Path(__file__).parent
FLAGS = ("-std=c++17", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror")


def build(name: str, folder: pathlib.Path) -> ctypes.CDLL:
    """The library of `name`.cc; without a C++ compiler, the test is skipped."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        unavailable("there is no C++ compiler here")
    path = folder / f"{name}.so"
    sources = ["-I", HERE.parents[1] / "ffi", HERE / f"{name}.cc", "-o", path]
    subprocess.run([compiler, *FLAGS, *sources], check=True)
    return ctypes.CDLL(str(path))
