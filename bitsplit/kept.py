"""What is made once and kept for the next process: files and folders whose names carry the digest of their content."""

import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from bitsplit.files import TEMPORARY, abandoned, file_digest, own_name, temporary_file

_DIGITS = 16  # of a digest, in the names of files that carry theirs
_PATIENCE = 2  # seconds that a run waits for another one before it says so
_computing_anew = False


def kept(
    folder: Path,
    stem: str,
    suffix: str,
    make: Callable,
    write: Callable[[Path, object], None],
    read: Callable,
    whole: Callable[[object], bool] = lambda _: True,
):
    """What `make` gives, read from `folder` where an earlier process has left it there intact, else left there for the
    next if it is `whole`; a process that comes meanwhile waits. One line of warning in all says where nothing could be
    kept."""
    if _computing_anew:
        return make()
    with _alone(folder / f".{stem}.lock"):
        if path := stored_file(folder, stem, suffix):
            mark_used(path)
            with suppress(FileNotFoundError):  # another process has trimmed the cache
                return read(path)
        value = make()
        if not whole(value):
            return value
        try:
            store_file(folder, stem, suffix, lambda temporary: write(temporary, value))
        except OSError as error:
            _warn_of(folder, error)
        return value


@contextmanager
def computing_anew() -> Iterator[None]:
    """Inside it, `kept` neither reads what other processes have left nor leaves anything."""
    global _computing_anew
    before, _computing_anew = _computing_anew, True
    try:
        yield
    finally:
        _computing_anew = before


def is_computing_anew() -> bool:
    """Whether this is inside `computing_anew`."""
    return _computing_anew


def _warn_of(folder: Path, error: OSError) -> None:
    _warn_once(f"warning: {folder.parent} cannot be written ({error.strerror}); nothing kept there")


@cache
def _warn_once(line: str) -> None:
    print(line, file=sys.stderr)


@contextmanager
def _alone(path: Path, wait: bool = True) -> Iterator[bool]:
    """Holds `path` once no other process does; false, without `wait`, where one does. Goes on where a file system knows
    no locks."""
    lock, alone = FileLock(path), True
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=_PATIENCE if wait else 0)
        except Timeout:
            if alone := wait:
                print(f"waiting for another run, which is making {path.parent.name} for this one too", file=sys.stderr)
                lock.acquire()
    except (OSError, NotImplementedError):
        pass
    try:
        yield alone
    finally:
        if lock.is_locked:
            with suppress(OSError):
                path.unlink()  # whoever waits for it looks into the folder next, and finds what was made
            lock.release()


def trim(folders: Iterable[Path], limit: float) -> None:
    """Removes from `folders` the files that `kept` has left there and nobody has used for longest, down to `limit`
    bytes in all."""
    facts = {}
    for folder in folders:
        for path in folder.glob("[0-9a-f]*-*.*"):
            with suppress(OSError):  # another process has removed it
                facts[path] = path.stat()
    room = limit
    for path in sorted(facts, key=lambda path: facts[path].st_mtime_ns, reverse=True):
        room -= facts[path].st_size
        if room < 0:
            with suppress(OSError):  # likewise, or it is not ours to remove
                path.unlink()


def mark_used(path: Path) -> None:
    """Makes what is stored at `path` the youngest for `trim`."""
    with suppress(OSError):
        os.utime(path)


def stored_file(folder: Path, stem: str, suffix: str) -> Path | None:
    """What `store_file` or, with "" for the suffix, `store_folder` has left under this name, intact; None, with a
    warning, where what is there is damaged.

    The name ends in the digest of the content, so that any change to it is found.
    """
    for path in sorted(folder.glob(f"{stem}-*{suffix}")):
        try:
            if path.name == _stored_name(path, stem, suffix):
                return path
            reason = "it is damaged"
        except OSError as error:
            reason = str(error.strerror)
        print(f"warning: {path} is not used ({reason}); it is computed anew", file=sys.stderr)
    return None


def store_file(folder: Path, stem: str, suffix: str, write: Callable[[Path], None]) -> None:
    """Leaves in `folder` what `write` puts into the path that it is given, whole or not at all; what was stored under
    this name before is replaced."""
    with temporary_file(folder, stem) as temporary:
        write(temporary)
        _place(temporary, folder, stem, suffix, file_digest(temporary))


def _place(temporary: Path, folder: Path, stem: str, suffix: str, digest: str) -> Path:
    """Moves a file of this digest to its place in `folder`, in that of what was stored under the name before."""
    path = folder / _name(stem, digest, suffix)
    os.replace(temporary, path)
    for other in folder.glob(f"{stem}-*{suffix}"):
        if other != path:
            with suppress(OSError):
                other.unlink()
    return path


class Appended:
    """A file that grows piece by piece inside `appending`, and lies at `path` once it is finished."""

    def __init__(self, folder: Path, stem: str, suffix: str, file: BinaryIO | None):
        self.path: Path | None = None
        self._folder, self._stem, self._suffix = folder, stem, suffix
        self._file, self._digest = file, hashlib.sha256()

    def append(self, content: memoryview) -> None:
        """Adds `content`; where there is no room for it the file is given up, as one line of warning says."""
        if self._file:
            try:
                self._file.write(content)
                self._file.flush()
                self._digest.update(content)
            except OSError as error:
                _warn_of(self._folder, error)
                self.give_up()

    def give_up(self) -> None:
        """Nothing will be left, and what comes next is not written."""
        if self._file:
            with suppress(OSError):
                self._file.close()
            Path(self._file.name).unlink(missing_ok=True)
            self._file = None

    def finish(self) -> None:
        """Moves the file to its place, for `stored_file` to find."""
        if self._file:
            temporary, digest = Path(self._file.name), self._digest.hexdigest()
            try:
                self.path = _place(temporary, self._folder, self._stem, self._suffix, digest)
            except OSError as error:
                _warn_of(self._folder, error)
                self.give_up()
            self._file = None


@contextmanager
def appending(folder: Path, stem: str, suffix: str) -> Iterator[Appended]:
    """What the body writes piece by piece and then finishes; nothing is left where it does not, another process is at
    it, or nothing can be written."""
    with ExitStack() as stack:
        file = None
        if stack.enter_context(_alone(folder / f".{stem}.lock", wait=False)):
            try:
                file = stack.enter_context(stack.enter_context(temporary_file(folder, stem)).open("wb"))
            except OSError as error:
                _warn_of(folder, error)
        yield Appended(folder, stem, suffix, file)


def store_folder(folder: Path, stem: str, write: Callable[[Path], None]) -> Path:
    """Leaves in `folder` the folder that `write` makes at the path that it is given, whole or not at all, and returns
    its place; a damaged one there is replaced."""
    for left in abandoned(folder, f".{stem}", TEMPORARY):
        shutil.rmtree(left, ignore_errors=True)
    scratch = folder / (own_name(f".{stem}") + TEMPORARY)
    try:
        scratch.mkdir(parents=True)
        written = scratch / "written"
        write(written)
        path = folder / _stored_name(written, stem)
        while not _move_folder(written, path):
            with suppress(FileNotFoundError):  # another process has taken the damaged one away
                if path.name == _stored_name(path, stem):  # that of a faster process
                    break
                os.rename(path, scratch / secrets.token_hex(4))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


def _move_folder(written: Path, path: Path) -> bool:
    """Moves a folder to `path`; False where something is there already."""
    try:
        os.rename(written, path)
    except OSError:
        if not path.exists():
            raise
        return False
    return True


def _stored_name(content: Path, stem: str, suffix: str = "") -> str:
    return _name(stem, _content_digest(content), suffix)


def _name(stem: str, digest: str, suffix: str) -> str:
    return f"{stem}-{digest[:_DIGITS]}{suffix}"


def _content_digest(path: Path) -> str:
    """SHA-256 of a file's content, or of the places and contents of all files in a folder."""
    if not path.is_dir():
        return file_digest(path)
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        digest.update(f"{file.relative_to(path)} {file_digest(file)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
