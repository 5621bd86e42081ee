"""Rows cut into clips, once: their cuts, given masks and fingerprints rest in the lake like an agent's output."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from infra.cutting import CutPool, Cutter
from infra.fingerprint import fingerprint_key
from infra.fingerprint_store import fingerprint_store
from infra.frame_folder import frame_files
from infra.given_store import given_store
from infra.lake import AgentStore, Lake
from infra.sources import ClipConfig, ClipSet, RowError, SourceRow, refusal, video_path
from schemas.clip import Clip
from schemas.label import AgentLabel
from schemas.record import Record, content_id

RecordT = TypeVar("RecordT", bound=Record)

RUNS_AT_ONCE = 32
"""Videos that are cut, then committed together: what a kill can cost."""

ROWS_OF_A_RUN = 32

CUT_ENGINE = "pyav+pyscenedetect"
"""What cuts, in the label of the cuts and where the work is told."""


def clip_key(clip: Clip) -> str:
    """Under which the fingerprint of a clip rests; clips of one shot share it."""
    return fingerprint_key(clip.video_sha256, clip.start_frame, clip.end_frame)


class RowCuts:
    """The cuts of some rows in a lake, under the agent that they are filed by and the rules that they are cut by.

    Cutting a video needs its frames, so the cuts of a row rest in the lake, under the row and the file's size and time
    of change. Rows that gave no clip are not kept: they are looked at again by every run.
    """

    def __init__(self, agent: str, root: Path, rows: Sequence[SourceRow], config: ClipConfig, lake: Lake) -> None:
        self._root, self._rows, self._config = root, rows, config
        self._store: AgentStore[ClipSet] = lake.agent_store(_label(agent, config), ClipSet)
        self._given, self._fingerprints = given_store(lake), fingerprint_store(lake)
        stamp = functools.cache(_stamp)
        self._keys = {row.source_id: _row_key(row, root, stamp) for row in rows}

    def held(self) -> dict[str, ClipSet]:
        """By source id, the clips of the rows that the lake holds; no video is opened to tell."""
        by_key = self._store.read(self._store.keys().intersection(self._keys.values()))
        given = self._given.keys()
        return {
            name: by_key[key] for name, key in self._keys.items() if key in by_key and _given_ids(by_key[key]) <= given
        }

    def cut(self, held: Mapping[str, ClipSet], say: Callable[[str], None]) -> dict[str, ClipSet]:
        """The clips of every row, of which `held` are in the lake: the others are cut, and those without fingerprints.

        Some videos are cut at a time, and each such lot is committed. `say` is told how far it has come.
        """
        rows = self._to_cut(held)
        found = {row.source_id: item for row in rows if (item := refusal(row, self._root, self._config))}
        runs = list(_runs([row for row in rows if row.source_id not in found]))
        with CutPool(functools.partial(Cutter, self._root, self._config), len(runs)) as pool:
            for start in range(0, len(runs), RUNS_AT_ONCE):
                parts = list(pool.cut(runs[start : start + RUNS_AT_ONCE]))
                # before the cuts, which promise that they are there
                _append_new(self._given, {key: item for part in parts for key, item in part.masks.items()})
                _append_new(
                    self._fingerprints, {key: item for part in parts for key, item in part.fingerprints.items()}
                )
                cut = [part.clips for part in parts]
                self._store.append([(key, item) for item in cut if item.clips and (key := self._keys[item.source_id])])
                found |= {item.source_id: item for item in cut}
                say(f"cut {len(found)} of {len(rows)} new rows into clips")
        return {**held, **found}

    def _to_cut(self, held: Mapping[str, ClipSet]) -> list[SourceRow]:
        """Rows of which the lake holds no clip, or not the fingerprints, as one of an earlier version does."""
        printed = self._fingerprints.keys()
        whole = {name for name, item in held.items() if all(clip_key(clip) in printed for clip in item.clips)}
        return [row for row in self._rows if row.source_id not in whole]


def _append_new(store: AgentStore[RecordT], items: Mapping[str, RecordT]) -> None:
    held = store.keys()
    store.append([(key, item) for key, item in items.items() if key not in held])


def _runs(rows: Sequence[SourceRow]) -> Iterator[list[SourceRow]]:
    """Rows of one video that stand together, at most `ROWS_OF_A_RUN`: one process reads the video once for them."""
    for _, group in itertools.groupby(rows, key=lambda row: row.video):
        run = list(group)
        yield from (run[start : start + ROWS_OF_A_RUN] for start in range(0, len(run), ROWS_OF_A_RUN))


def _given_ids(clips: ClipSet) -> set[str]:
    return {clip.given_sha256 for clip in clips.clips} - {""}


def _label(agent: str, config: ClipConfig) -> AgentLabel:
    return AgentLabel(
        agent=agent,
        engine=CUT_ENGINE,
        weights=(),
        config_json=config.model_dump_json(),
        prompt_hash="",
        revision=2,
    )


def _row_key(row: SourceRow, videos_root: Path, stamp: Callable[[Path], str]) -> str:
    """Empty where there is no file inside the root: the row is then quarantined afresh, whatever the lake holds."""
    try:
        stamps = [stamp(video_path(row, videos_root))]
        stamps += [stamp(videos_root / row.masks.path)] if row.masks else []
    except (OSError, ValueError, RowError):
        return ""
    return content_id(row, *stamps)


def _stamp(path: Path) -> str:
    """Changes with a file, and with every picture of a folder: names, sizes and times of change."""
    if path.is_dir():
        return content_id(*(str(file) for file in frame_files(path)))
    stat = path.stat()
    return content_id(stat.st_size, stat.st_mtime_ns)
