"""Source text to train on: what is installed beside the running interpreter, openly licensed.

The standard library and every package whose metadata names a permissive licence. A file is held
back from training if the checksum of its name says so, so that anyone can tell which were; what
repeats a held-back file is left out too.
"""

import collections
import dataclasses
import importlib.metadata
import keyword
import pathlib
import platform
import random
import re
import sysconfig
import zlib
from collections.abc import Iterator

PERMISSIVE = re.compile(
    r"(MIT|0?BSD|Apache|ISC|PSF|Python Software Foundation|Python-2\.0|CNRI-Python|HPND|Unlicense"
    r"|Zlib|CC0|The Unlicense|Historical Permission|MIT-CMU)",
    re.IGNORECASE,
)
SUFFIXES = {".py", ".md", ".rst", ".txt", ".json", ".toml", ".yaml", ".yml", ".cfg", ".csv"}
LEFT_OUT = {
    "test",
    "tests",
    "testing",
    "idlelib",
    "lib2to3",
    "ensurepip",
    "site-packages",
    "_vendor",
}
MAX_PYTHON_BYTES, MAX_TEXT_BYTES, MAX_LINE = 200_000, 50_000, 400
ONE_HELD_BACK_OF = 40
CODE_BYTES_PER_EDIT = 30_000
EDITED_LINES = range(8, 46)


@dataclasses.dataclass(frozen=True)
class File:
    """One text."""

    name: str
    """Its package, a slash, and its path there."""
    text: str

    @property
    def held_back(self) -> bool:
        """Whether no training may see it."""
        return zlib.crc32(self.name.encode()) % ONE_HELD_BACK_OF == 0


@dataclasses.dataclass(frozen=True)
class Package:
    """A part of the corpus that has one licence."""

    name: str
    version: str
    licence: str
    files: list[File]

    @property
    def size(self) -> int:
        """Characters of all its files."""
        return sum(len(file.text) for file in self.files)


def collect(max_package_bytes: int, max_bytes: int) -> list[Package]:
    """The packages of the running interpreter, the standard library first, each text once.

    Args:
      max_package_bytes: what is taken of one package at most, of files in order of their checksum.
      max_bytes: what is taken at most in all.
    """
    installed = sorted(importlib.metadata.distributions(), key=lambda d: d.name.lower())
    seen: set[str] = set()
    packages = []
    for candidate in [_standard_library(), *map(_installed, installed)]:
        if candidate is None:
            continue
        name, version, licence, paths = candidate
        room = min(max_package_bytes, max_bytes - sum(package.size for package in packages))
        files = _take(_read(name, paths), room, seen)
        if files:
            packages.append(Package(name, version, licence, files))
    return packages


def split(packages: list[Package]) -> tuple[list[File], list[File]]:
    """The files to train on, and those held back; neighbours stay neighbours.

    A file is left out of both if it repeats more than half of a held-back one, line by line.
    """
    files = [file for package in packages for file in package.files]
    held_back = [file for file in files if file.held_back]
    owners = collections.defaultdict(set)
    sizes = {}
    for index, file in enumerate(held_back):
        lines = _telling_lines(file.text)
        sizes[index] = len(lines)
        for line in lines:
            owners[line].add(index)

    def repeats(file: File) -> bool:
        shared = collections.Counter(
            index for line in _telling_lines(file.text) for index in owners.get(line, ())
        )
        return any(count > sizes[index] / 2 for index, count in shared.items())

    return [file for file in files if not file.held_back and not repeats(file)], held_back


def code_edits(files: list[File], seed: int) -> Iterator[str]:
    """Texts that show a piece of code, ask for one name to be changed, and do it.

    They teach a small model that an edit mostly copies, as it does in use.
    """
    rng = random.Random(seed)
    for file in files:
        if file.name.endswith(".py"):
            for _ in range(int(len(file.text) / CODE_BYTES_PER_EDIT + rng.random())):
                edit = _rename(file.text, rng)
                if edit:
                    yield edit


def edit_prompt(code: str, old: str, new: str) -> str:
    """The part of an edit that a model is given: the code and what to change."""
    return f"# Original:\n{code}\n# Rename {old} to {new}:\n"


def _rename(text: str, rng: random.Random) -> str | None:
    definitions = _definitions(text)
    if not definitions:
        return None
    code = rng.choice(definitions)
    used = collections.Counter(_names(code))
    old = [name for name, count in used.items() if count >= 3]
    new = sorted(set(_names(text)) - set(used))
    if not old or not new:
        return None
    before, after = rng.choice(old), rng.choice(new)
    return edit_prompt(code, before, after) + re.sub(rf"\b{before}\b", after, code)


def _definitions(text: str) -> list[str]:
    """The functions and classes of a source that have about as many lines as one would edit."""
    lines = text.splitlines()
    found = []
    for start, line in enumerate(lines):
        head = re.match(r"(\s*)(async def|def|class)\b", line)
        if not head:
            continue
        # It ends before the next line that is not deeper, unless that closes its signature.
        same_or_less = re.compile(rf"\s{{0,{len(head[1])}}}[^\s)\]}}]")
        rest = range(start + 1, len(lines))
        end = next((i for i in rest if same_or_less.match(lines[i])), len(lines))
        code = "\n".join(lines[start:end]).rstrip() + "\n"
        if code.count("\n") in EDITED_LINES:
            found.append(code)
    return found


def _names(code: str) -> list[str]:
    found = re.findall(r"\b[A-Za-z_][A-Za-z0-9_]{3,}\b", code)
    return [name for name in found if not keyword.iskeyword(name)]


def _standard_library() -> tuple[str, str, str, list[tuple[str, pathlib.Path]]]:
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    paths = [(path.relative_to(root).as_posix(), path) for path in root.rglob("*.py")]
    return "python", platform.python_version(), "PSF-2.0", paths


def _installed(
    distribution: importlib.metadata.Distribution,
) -> tuple[str, str, str, list[tuple[str, pathlib.Path]]] | None:
    """Name, version, licence and files of a package, or None if its licence is not permissive."""
    licence = _licence(distribution.metadata)
    # Of "BSD-3-Clause AND (MIT OR Zlib)", every part must be permissive.
    parts = [part for part in re.split(r"\bAND\b|\bOR\b|[()/,;]", licence) if part.strip()]
    if not parts or not all(PERMISSIVE.match(part.strip()) for part in parts):
        return None
    paths = [
        (str(path), pathlib.Path(distribution.locate_file(path)))
        for path in distribution.files or []
    ]
    return distribution.name, distribution.version, licence, paths


def _licence(metadata: importlib.metadata.PackageMetadata) -> str:
    """The licence by its most formal name: an SPDX expression, classifiers, or a free text."""
    if metadata.get("License-Expression"):
        return metadata["License-Expression"]
    prefix = "License :: OSI Approved :: "
    named = [c.removeprefix(prefix) for c in metadata.get_all("Classifier") or [] if prefix in c]
    return ", ".join(named) or (metadata.get("License") or "").strip().split("\n")[0][:60]


def _read(package: str, paths: list[tuple[str, pathlib.Path]]) -> Iterator[File]:
    for relative, path in sorted(paths, key=lambda item: zlib.crc32(item[0].encode())):
        parts = pathlib.PurePosixPath(relative)
        is_readme = parts.name == "METADATA"
        if (parts.suffix not in SUFFIXES and not is_readme) or LEFT_OUT & set(parts.parts):
            continue
        limit = MAX_PYTHON_BYTES if parts.suffix == ".py" else MAX_TEXT_BYTES
        try:
            if 200 <= path.stat().st_size <= limit:
                yield File(f"{package}/{relative}", path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            continue


def _take(files: Iterator[File], room: int, seen: set[str]) -> list[File]:
    """Files until there is no room, none twice, in order of their names."""
    taken, size = [], 0
    for file in files:
        if size + len(file.text) > room:
            break
        if file.text not in seen and max(map(len, file.text.splitlines())) <= MAX_LINE:
            seen.add(file.text)
            taken.append(file)
            size += len(file.text)
    return sorted(taken, key=lambda file: file.name)


def _telling_lines(text: str) -> set[str]:
    """The lines of a text that are long enough not to be shared by chance."""
    return {line.strip() for line in text.splitlines() if len(line.strip()) >= 30}
