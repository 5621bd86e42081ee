"""The temporary folder of a Ray that is started here, and the folders of those whose owners died.

An owner holds a lock on its folder for as long as it lives; the system frees it however the owner ends. That tells more
than a process id, which another process may have by now, or another container that shares the folder.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_PREFIX = "vr-"
_MARK = "ray-of-videorefer"
"""An empty file, without which a folder is nothing of ours, whatever its name."""
_GONE = ".gone"
_LONGEST_PARENT = 26  # a socket's whole path must stay under 104 characters, of which Ray and we take up to 77


@dataclass(frozen=True, slots=True)
class RayFolder:
    """A folder of our own; `lock` is a file descriptor that holds the lock on it."""

    path: Path
    lock: int

    @classmethod
    def make(cls) -> Self:
        """A new folder; those of dead owners beside it go."""
        parent = _parent()
        sweep_lost_folders()
        hidden = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=parent))
        lock = _lock(hidden)
        (hidden / _MARK).touch()
        # nobody sweeps what has no name yet, so that nobody can take a folder away between its making and its lock
        return cls(hidden.rename(parent / hidden.name[1:]), lock)

    def remove(self) -> None:
        """Take the folder away with all that is in it.

        A process of a dead Ray may still be writing there. It does not find the folder under its new name; and what is
        left all the same keeps the mark, for the next start to take away.
        """
        with contextlib.suppress(OSError):
            gone = self.path.rename(self.path.with_suffix(_GONE))
            for child in gone.iterdir():
                if child.name != _MARK:
                    shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
            shutil.rmtree(gone)
        os.close(self.lock)


def _parent() -> Path:
    folder = tempfile.gettempdir()
    if len(folder) > _LONGEST_PARENT:
        folder = "/tmp"  # noqa: S108 - mkdtemp makes a folder of its own there
    return Path(folder)


def _lock(folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def sweep_lost_folders() -> None:
    """Take away the folders of owners that died; those whose owner lives, or is another user, stay."""
    for mark in _parent().glob(f"{_PREFIX}*/{_MARK}"):
        with contextlib.suppress(OSError):  # locked, or not ours
            RayFolder(mark.parent, _lock(mark.parent)).remove()
