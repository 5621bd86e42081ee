"""Model folders as transformers writes them: found on this disk alone, and named by what is in them."""

import contextlib
import functools
import hashlib
import platform
from pathlib import Path

from infra.settings import settings
from infra.weights import WeightError
from infra.whole_file import write_whole
from schemas.record import content_id

_NO_PART_OF_A_MODEL = (".md", ".png", ".jpg")
_OTHER_FORMATS = (".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".ckpt")
"""Weights that are never read here: a pickle may run code, and the others are for other libraries."""
_KEPT_FROM_BYTES = 256 * 2**20
_SAMPLES = 16
_SAMPLE_BYTES = 64 * 2**10


class CheckpointError(WeightError):
    """A model folder is not on this machine, or is no model that may be loaded."""


def checkpoint_folder(model: str) -> Path:
    """The folder of a model that a profile names by path, or by its hub name if the hub's cache here holds it.

    Nothing is fetched. Raises CheckpointError where there is no folder with config.json and safetensors.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        folder = _cached(model)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} holds no config.json; give a folder that transformers' save_pretrained wrote")
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder} holds no *.safetensors, the only weights read; save the model as safetensors")
    return folder


def checkpoint_label(model: str) -> str:
    """`name@sha256-prefix` over the names and bytes of the files that make the model, wherever the folder lies.

    Reads them all the first time in a process, large ones the first time on this machine, and again only where size or
    time of a file changed. Raises CheckpointError as `checkpoint_folder` does.
    """
    files = _parts(checkpoint_folder(model))
    lines = (f"{_sha256(path, path.stat().st_size, path.stat().st_mtime_ns)}  {path.name}\n" for path in files)
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    return f"{_name(model)}@{digest[:12]}"


def checkpoint_mark(model: str) -> str:
    """A SHA-256 over name, size and samples of each file that makes the model: what tells one model from another
    without reading gigabytes. At most a mebibyte of a file is read, small ones whole.

    Raises CheckpointError as `checkpoint_folder` does.
    """
    seen = hashlib.sha256()
    for path in _parts(checkpoint_folder(model)):
        size = path.stat().st_size
        seen.update(f"{path.name} {size}\n".encode())
        last = max(0, size - _SAMPLE_BYTES)
        with path.open("rb") as file:
            for start in sorted({last * number // (_SAMPLES - 1) for number in range(_SAMPLES)}):
                file.seek(start)
                seen.update(file.read(_SAMPLE_BYTES))
    return seen.hexdigest()


def check_mark(model: str, mark: str) -> None:
    """Raises CheckpointError where the folder here is missing, or holds another model than the one of that
    `checkpoint_mark`, as it may on another machine.
    """
    if checkpoint_mark(model) != mark:
        raise CheckpointError(
            f"{checkpoint_folder(model)} on {platform.node()} is not the model that this run began with; copy that one "
            "to all machines, and the same command goes on"
        )


def _name(model: str) -> str:
    return Path(model).expanduser().name


def _parts(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and _is_part(path))


def _is_part(path: Path) -> bool:
    return path.name[0] != "." and path.suffix not in (*_NO_PART_OF_A_MODEL, *_OTHER_FORMATS)


def _cached(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except HFValidationError as error:  # a path
        raise CheckpointError(
            f"there is no model folder {model}; copy it there, or where a hub can be reached: "
            f"hf download NAME --local-dir {model}; or name where it is"
        ) from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"model {model!r} is not on this machine: it is no folder, nor does the hub's cache hold it; copy the "
            f"folder here and name its path, or where a hub can be reached: hf download {model}"
        ) from error


@functools.lru_cache(maxsize=256)
def _sha256(path: Path, size: int, time_ns: int) -> str:
    """Size and time tell one content of a path from the next.

    The hash of a large file is kept in this machine's cache: a language model takes minutes to read.
    """
    if size < _KEPT_FROM_BYTES:
        return _hash(path)
    changed_ns = path.stat().st_ctime_ns  # a copy may bring its time along, but not this one
    note = settings().cache_dir / "hashes" / content_id(str(path.absolute()), str(size), str(time_ns), str(changed_ns))
    with contextlib.suppress(OSError):
        return note.read_text()
    digest = _hash(path)
    with contextlib.suppress(OSError):  # then it is read again next time
        write_whole(note, digest.encode())
    return digest


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
