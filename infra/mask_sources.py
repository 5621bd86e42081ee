"""Sources that bring masks: folders in the layouts of MeViS, Ref-YouTube-VOS and DAVIS, told by what lies in them.

    <split>/JPEGImages/<video>/00000.jpg          frames, under `480p/` in DAVIS
    <split>/meta_expressions.json                 or ../meta_expressions/<split>/meta_expressions.json
    <split>/davis_text_annotations/*.txt          instead of it, or one folder up, for DAVIS
    <split>/mask_dict.json                        MeViS: COCO run lengths by annotation, one for each frame
    <split>/Annotations/<video>/00000.png         the others: pixel value = object, under `480p/` in DAVIS

Formats are those that the datasets' own loaders read (henghuiding/MeViS `lmpm/data/datasets/mevis.py`, the
Ref-YouTube-VOS challenge, and the text files of Khoreva et al., ACCV 2018). A row is one expression, its text the
caption.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.raw_rows import RawRow, SourceError, one_line
from schemas.given import MaskRef

FRAMES, PNG_MASKS, RLE_MASKS = "JPEGImages", "Annotations", "mask_dict.json"
EXPRESSIONS, DAVIS_TEXTS = "meta_expressions.json", "davis_text_annotations"
DAVIS_SIZE = "480p"

DAVIS_FPS, NAMED_FPS = 24.0, 6.0
"""Frames a second, which the layouts do not state: of DAVIS, and of the frames that `meta_expressions.json` names. In
Ref-YouTube-VOS these are every fifth one of 30 a second; MeViS is taken to have as many.
"""


@dataclass(frozen=True)
class _Layout:
    """Where one source has its parts: `folder` holds the frame folders; `frames`, the same, and `masks` are relative
    to the videos' root.
    """

    expressions: Path
    folder: Path
    frames: Path
    masks: Path | None

    def row(self, video: str, exp_id: str, text: object, objects: object, frames: tuple[str, ...]) -> RawRow:
        ref = None
        if self.masks is not None:
            path = self.masks if self.masks.suffix == ".json" else self.masks / video
            names = objects if isinstance(objects, list) else [] if objects is None else [objects]
            ref = MaskRef(path=path.as_posix(), objects=tuple(dict.fromkeys(map(str, names))), frames=frames)
        place = f"{video}/{exp_id}"
        values = {"video": (self.frames / video).as_posix(), "caption": text, "id": place}
        return place, values | {"fps": self._fps(video, len(frames)), "masks": ref}

    def _fps(self, video: str, num_named: int) -> float:
        """That of a video's frame folder, which may hold the frames between the named ones too."""
        if self.folder.name == DAVIS_SIZE:
            return DAVIS_FPS
        num_files = 0
        if ".." not in Path(video).parts and not Path(video).is_absolute():
            with contextlib.suppress(OSError, ValueError):  # ValueError: a name that no file can have
                num_files = sum(1 for _ in (self.folder / video).iterdir())
        return NAMED_FPS * max(1, round((num_files - 1) / max(1, num_named - 1)))


def mask_rows(source: Path, root: Path) -> Iterator[RawRow] | None:
    """A row for each expression of a folder in one of the layouts, None where it is in none.

    Where the folder has no masks at all, as test splits, rows are captions like any other. Raises SourceError where the
    expressions are missing or cannot be read, or the folder does not lie in the root.
    """
    layout = _layout(source, root) if source.is_dir() and (source / FRAMES).is_dir() else None
    if layout is None:
        return None
    try:
        return _from_texts(layout) if layout.expressions.is_dir() else _from_json(layout)
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{layout.expressions} cannot be read: {one_line(error)}") from error


def _layout(source: Path, root: Path) -> _Layout | None:
    expressions = (
        source / EXPRESSIONS,
        source.parent / "meta_expressions" / source.name / EXPRESSIONS,
        source / DAVIS_TEXTS,
        source.parent / DAVIS_TEXTS,
    )
    found = next((path for path in expressions if path.exists()), None)
    size = DAVIS_SIZE if (source / FRAMES / DAVIS_SIZE).is_dir() else ""
    masks = next((path for path in (source / RLE_MASKS, source / PNG_MASKS / size) if path.exists()), None)
    if found is None:
        if masks is None:
            return None
        raise SourceError(f"source {source} has masks but no expressions: {EXPRESSIONS} or {DAVIS_TEXTS}/ is missing")
    if not source.resolve().is_relative_to(root.resolve()):
        raise SourceError(f"folder {source} does not lie in the videos root {root}")
    below_root = source.resolve().relative_to(root.resolve())
    return _Layout(
        expressions=found,
        folder=source / FRAMES / size,
        frames=below_root / FRAMES / size,
        masks=below_root / masks.relative_to(source) if masks else None,
    )


def _from_json(layout: _Layout) -> Iterator[RawRow]:
    """`{"videos": {video: {"frames": [stem], "expressions": {id: {"exp", "obj_id", "anno_id"}}}}}`.

    Annotations of `mask_dict.json` go by `anno_id`, pixel values by `obj_id`; each is one value or a list of them.
    """
    meta = json.loads(layout.expressions.read_bytes())
    videos = meta.get("videos") if isinstance(meta, dict) else None
    if not isinstance(videos, dict):
        raise ValueError('an object {"videos": {...}} is wanted')
    return (row for video, entry in videos.items() for row in _rows_of(layout, video, entry))


def _rows_of(layout: _Layout, video: str, entry: Any) -> Iterator[RawRow]:
    by_rle = layout.masks is not None and layout.masks.suffix == ".json"
    try:
        frames = tuple(sorted(entry["frames"]))
        if not all(isinstance(stem, str) for stem in frames):
            raise TypeError("frames must be names of images without their suffix")
        expressions: Mapping[str, Any] = entry["expressions"]
        rows = [
            layout.row(video, exp_id, one["exp"], one.get("anno_id" if by_rle else "obj_id"), frames)
            for exp_id, one in expressions.items()
        ]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        rows = [(video, f"no entry of {EXPRESSIONS}: {type(error).__name__} {one_line(error)}")]
    yield from rows


def _from_texts(layout: _Layout) -> Iterator[RawRow]:
    """Lines `<video> <object> "<text>"` of one text file for each annotator; the second one's are in Latin-1."""
    files = sorted(layout.expressions.glob("*.txt"))
    texts = [(file.stem, _decoded(file.read_bytes())) for file in files]
    return (
        row
        for stem, text in texts
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip()
        for row in _row_of(layout, f"{stem}.txt:{number}", stem, line)
    )


def _row_of(layout: _Layout, place: str, stem: str, line: str) -> Iterator[RawRow]:
    parts = line.split(maxsplit=2)
    if len(parts) < 3:
        yield place, f'a line is `<video> <object> "<text>"`, got {line[:80]!r}'
    else:
        yield layout.row(parts[0], f"{stem}/{parts[1]}", parts[2].strip().strip('"'), parts[1], ())


def _decoded(text: bytes) -> str:
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError:
        return text.decode("latin-1")
