"""Files on a local disk that appear whole or not at all, and are still there after a power cut."""

import contextlib
import os
import uuid
from pathlib import Path


def write_whole(path: Path, data: bytes, tries: int = 3, *, synced: bool = True) -> None:
    """Write a file, replacing one of that name; it is on the disk when this returns, its folder made where there is
    none.

    It is written beside its place as `*.tmp` and renamed; a tidier that takes that away costs one of the tries. Not
    `synced`, it takes a fortieth of the time, and outlives this process, but after a power cut it may be missing, empty
    or torn. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            if synced:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if not isinstance(error, FileNotFoundError) or tries == 1:
            raise
        write_whole(path, data, tries - 1, synced=synced)
        return
    if not synced:
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut
    finally:
        os.close(folder)
