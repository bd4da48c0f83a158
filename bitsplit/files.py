"""Where things that are made once are kept, and how files come to be whole or not at all."""

import atexit
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from bitsplit.errors import InputError

TEMPORARY = ".tmp"
_LONGEST = 150  # bytes of a file's name in that of a temporary one


def cache_root() -> Path:
    """`$BITSPLIT_CACHE`, or `~/.cache/bitsplit` without it; where nothing can be kept there, with a line of warning, a
    folder that goes with this process."""
    return _usable_cache(os.environ.get("BITSPLIT_CACHE") or "~/.cache/bitsplit")


@cache
def _usable_cache(given: str) -> Path:
    try:
        folder = user_path(given)
        check_writable(folder, "")
    except InputError as error:
        reason, _, _ = str(error).partition(";")
        with suppress(InputError, OSError):
            if any(user_path(given).iterdir()):
                return user_path(given)  # somebody has filled it for others to read
        print(f"warning: {reason}; nothing is kept for the next run (BITSPLIT_CACHE=FOLDER keeps it)", file=sys.stderr)
        return scratch_folder()
    return folder


@cache
def scratch_folder() -> Path:
    """A temporary folder of this process, which is removed at its end."""
    folder, owner = Path(tempfile.mkdtemp(prefix="bitsplit-")), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # and not a process that was forked from it
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def user_path(text: str) -> Path:
    """The path that a user has written, with `~` for a home folder; InputError where there is none to put there."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(f"{text}: no home folder is known; give the whole path instead of ~") from error


def own_name(name: str) -> str:
    """`name` with marks of this machine, this process and chance; what bears it is removed if its maker was killed."""
    return f"{name}-{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"


def abandoned(folder: Path, name: str = ".*", suffix: str = "") -> Iterator[Path]:
    """What processes of this machine that have ended left in `folder` under an `own_name`; `name` may have wildcards.

    Whether a process of another machine has ended cannot be seen, so what it left is not among them.
    """
    marks = re.compile(rf".*-{_machine()}-(\d+)-[0-9a-f]{{8}}{re.escape(suffix)}", re.DOTALL)
    for path in folder.glob(f"{name}-{_machine()}-*{suffix}"):
        if (found := marks.fullmatch(path.name)) and not _lives(int(found[1])):
            yield path


def remove_abandoned(folder: Path) -> None:
    """Removes the temporary files in `folder` whose makers were killed."""
    for path in abandoned(folder, suffix=TEMPORARY):
        with suppress(OSError):
            path.unlink()


@cache
def _machine() -> str:
    """A mark of what numbers processes: the machine or, in a container, that container's own numbering."""
    with suppress(OSError):
        return _short_hash(platform.node() + os.readlink("/proc/self/ns/pid"))
    return _short_hash(platform.node())


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        pass
    return True


@contextmanager
def temporary_file(folder: Path, name: str) -> Iterator[Path]:
    """A temporary file in `folder`, for the body to move to its place; nothing is left where the body does not, and
    after SIGKILL only until the next one is made there."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder)
    # A name may be as long as a system allows, and has marks beside it here.
    path = folder / (own_name("." + name.encode()[:_LONGEST].decode(errors="ignore")) + TEMPORARY)
    try:
        path.touch(exist_ok=False)
        yield path
    finally:  # after an interrupt too
        path.unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, put in its place at the end of the body; nothing is left if the body raises. A
    symbolic link stays one, to what is written; what was there leaves its permissions."""
    path = path.resolve()
    with temporary_file(path.parent, path.stem) as temporary:
        yield temporary
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Puts `text` at `path` whole or not at all, whatever happens in between."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")  # a path's own bytes


def check_writable(folder: Path, remedy: str) -> None:
    """InputError, with what to do, where no file could be written into `folder`, which need not be there yet."""
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror or error}); {remedy}") from error


def output_file(given: str | os.PathLike, key: str | None = None) -> Path:
    """The path of a file that a user wants written, under a `key` of run.py or not; InputError for a folder, and where
    no file could be written."""
    path = user_path(os.fspath(given))
    said = f"{key}={path}" if key else path
    if path.is_dir():
        raise InputError(f"{said} is a folder; give the name of a file in it")
    if path.exists() and not path.is_file():  # a device, say, which a file would take the place of
        raise InputError(f"{said} is no ordinary file; give the name of one")
    check_writable(path.parent, f"give another place with {key}=FILE" if key else "give another path")
    return path


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_digest(paths: Iterable[Path], root: Path, times: bool = False) -> str:
    """What tells one set of files from another without reading them whole: SHA-256 of their places below `root`, their
    sizes and, with `times`, when they were changed last; of files that have one size all, uncompressed images say, also
    of what stands in their middle."""
    digest, paths = hashlib.sha256(), list(paths)
    facts = [path.stat() for path in paths]
    for path, fact in zip(paths, facts, strict=True):
        when = f" {fact.st_mtime_ns}" if times else ""
        digest.update(f"{path.relative_to(root)} {fact.st_size}{when}\n".encode(errors="surrogateescape"))
    if len(paths) > 1 and len({fact.st_size for fact in facts}) == 1:
        for path, fact in zip(paths, facts, strict=True):
            with path.open("rb") as file:
                file.seek(fact.st_size // 2)
                digest.update(file.read(4096))
    return digest.hexdigest()


def facts_digest(facts: object) -> str:
    """SHA-256 of plain values; equal ones, in whatever order of their keys, have equal digests."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def sources_digest(paths: Iterable[Path]) -> str:
    """SHA-256 of the contents of source files: another way of computing something makes another thing."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(paths))).hexdigest()
