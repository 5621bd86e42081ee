"""The source of `videorefer demo`: real sample clips with captions, and the synthetic rows that the caller made."""

import json
import shutil
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from infra.weights import CATALOGUE, weight_path
from schemas.record import Record

MANIFEST = "manifest.jsonl"


class DemoCaption(Record):
    """One line of `demo/captions.jsonl`: what is seen in [start_s, end_s) of a packaged clip.

    `clip` is the clip's name in the catalogue of packaged files. Bounds lie midway between two frames, so that
    rounding never adds the neighbour.
    """

    id: str
    clip: str
    caption: str
    start_s: float
    end_s: float


def demo_captions() -> tuple[DemoCaption, ...]:
    """The captions that ship with the package, in their order.

    They were written by looking at the frames. The subjects of the first six are objects that the embedded detector
    finds; nothing in the last two is, and they show what becomes of such captions.
    """
    text = (files("flows") / "demo" / "captions.jsonl").read_text(encoding="utf-8")
    return tuple(DemoCaption.model_validate_json(line) for line in text.splitlines())


def write_demo_source(folder: Path, synthetic_rows: Sequence[Mapping[str, object]]) -> Path:
    """Copy the real clips to `folder/videos`, write `folder/manifest.jsonl` and return its path.

    A row holds id, video, caption, start_s, end_s and license. `synthetic_rows` come after the real ones, as they are:
    their `video` must be relative to `folder`. Raises WeightError where a clip was not fetched, before anything is
    written, and ValueError where two rows share an id.
    """
    captions = demo_captions()
    clips = {name: weight_path(name) for name in dict.fromkeys(item.clip for item in captions)}
    rows = [_row(item, clips[item.clip]) for item in captions] + [dict(row) for row in synthetic_rows]
    ids = [str(row.get("id")) for row in rows]
    if len(set(ids)) < len(ids):
        raise ValueError(
            f"rows of a source need different ids, got {sorted({i for i in ids if ids.count(i) > 1})} twice"
        )
    videos = folder / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    for path in clips.values():
        _copy(path, videos / path.name)
    manifest = folder / MANIFEST
    manifest.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return manifest


def _row(item: DemoCaption, clip: Path) -> dict[str, object]:
    return {
        "id": item.id,
        "video": f"videos/{clip.name}",
        "caption": item.caption,
        "start_s": item.start_s,
        "end_s": item.end_s,
        "license": CATALOGUE[item.clip].license,
    }


def _copy(source: Path, target: Path) -> None:
    # A copy rather than a link: a source may hold no path that leads out of its root.
    if not target.is_file() or target.stat().st_size != source.stat().st_size:
        shutil.copyfile(source, target)
