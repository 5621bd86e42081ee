"""Decontamination: what a bench asks about stays out of a build, and copies of held-out clips out of its `train`.

A video that bears a bench's id is kept out whatever its split: it would be harmless as `held_out`, but benches that are
drawn from there should not ask again what an official one asks.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmark.bench_videos import bench_video_ids, video_ids, videos_of
from benchmark.items import BenchFileError
from flows.cut_rows import RowCuts, clip_key
from flows.profile_config import DecontaminationProfile
from flows.profile_files import ProfileError
from infra.fingerprint import Fingerprint, FingerprintIndex
from infra.fingerprint_store import fingerprint_store
from infra.lake import Lake
from infra.source_rows import rejection
from infra.sources import ClipConfig, ClipSet, SourceRow
from schemas.clip import Clip
from schemas.quarantine import QuarantineEntry

_BENCH_CUTTING = ClipConfig(min_shot_s=1e-3)
"""Every shot of a bench's video counts, however short."""


class BenchVideos:
    """Folders with benches' own videos, cut into shots as the rows of a source are, with fingerprints in the lake.

    Opening it lists the folders. Raises ProfileError for one that is absent or holds no video.
    """

    def __init__(self, profile: DecontaminationProfile, lake: Lake) -> None:
        self._folders: list[tuple[str, int, RowCuts]] = []
        for folder, videos in _bench_folders(profile).items():
            rows = [_row(video) for video in videos]
            cuts = RowCuts("bench", folder.absolute(), rows, _BENCH_CUTTING, lake)
            self._folders.append((folder.absolute().name, len(rows), cuts))

    def held(self) -> dict[str, str]:
        """What each shot is that the lake holds, by the key of its fingerprint; no video is opened to tell."""
        return {key: said for name, _, cuts in self._folders for key, said in _told(name, cuts.held()).items()}

    def cut(self, say: Callable[[str], None]) -> dict[str, str]:
        """What each shot is, by the key of its fingerprint, which the lake holds from then on.

        `say` is told of videos that cannot be read: nothing is held against those.
        """
        told: dict[str, str] = {}
        for name, num, cuts in self._folders:
            found = cuts.cut(cuts.held(), partial(_say_of, name, say))
            unread = [entry for item in found.values() if not item.clips for entry in item.rejected]
            if unread:
                said = f"{len(unread)} of {num} bench videos cannot be read, so copies of them are not found"
                say(f"{name}: {said}; the first: {unread[0].evidence}")
            told |= _told(name, found)
        return told


def bench_ids(profile: DecontaminationProfile) -> dict[str, str]:
    """By the id of each video that a bench asks about, the name of the items file.

    Raises ProfileError for a file that is absent or broken.
    """
    found: dict[str, str] = {}
    for file in profile.bench_items:
        try:
            ids = bench_video_ids(Path(file))
        except BenchFileError as error:
            raise ProfileError(f"profile's decontamination.bench_items: {error}; paths count from here") from error
        found = {**dict.fromkeys(sorted(ids), Path(file).name), **found}
    return found


def check_benches(profile: DecontaminationProfile) -> None:
    """Raises ProfileError, in one line, where a file or folder of a bench is absent or broken."""
    bench_ids(profile)
    _bench_folders(profile)


def bench_rows(rows: Sequence[SourceRow], ids: Mapping[str, str]) -> dict[str, QuarantineEntry]:
    """By source id, the entry of each row whose video a bench asks about; `ids` as from `bench_ids`."""
    found: dict[str, QuarantineEntry] = {}
    for row in rows:
        if theirs := sorted(video_ids(row.video) & ids.keys()):
            said = f"{row.video} bears the video id {theirs[0]}, about which {ids[theirs[0]]} asks"
            found[row.source_id] = rejection(row.source_id, "bench_video", said)
    return found


def near_duplicates(
    clips: Sequence[Clip], bench: Mapping[str, str], near_distance: float, lake: Lake
) -> dict[str, QuarantineEntry]:
    """By clip id, the entry of each clip of `train` that is a copy of a held-out one or of a bench's video.

    `bench` are the keys of fingerprints as from `BenchVideos`. Clips whose fingerprint the lake lacks are passed over.
    """
    known = dict(bench)
    for clip in clips:
        if clip.split == "held_out":
            known.setdefault(clip_key(clip), f"clip {clip.clip_id} of row {clip.source_id}, which is held out")
    mine = [clip for clip in clips if clip.split == "train"]
    if not known or not mine:
        return {}
    keys = {clip.clip_id: clip_key(clip) for clip in mine}
    prints = fingerprint_store(lake).find({*known, *keys.values()})
    index = FingerprintIndex({key: prints[key] for key in known if key in prints})
    nearest = {key: _nearest(key, prints[key], known, index) for key in dict.fromkeys(keys.values()) if key in prints}
    found: dict[str, QuarantineEntry] = {}
    for clip in mine:
        near = nearest.get(keys[clip.clip_id])
        if near is not None and near[1] <= near_distance:
            found[clip.clip_id] = _entry(clip, known[near[0]], near[1], near_distance)
    return found


def _nearest(
    key: str, item: Fingerprint, known: Mapping[str, str], index: FingerprintIndex
) -> tuple[str, float] | None:
    """The very same shot is known even where it is flat, and has no hash to compare."""
    return (key, 0.0) if key in known else index.nearest(item)


def _entry(clip: Clip, said: str, distance: float, near_distance: float) -> QuarantineEntry:
    evidence = f"fingerprints {distance:.3f} apart, at most {near_distance:g} for a copy, from {said}"
    return QuarantineEntry.of_clip(clip, "source", "near_duplicate", evidence)


def _bench_folders(profile: DecontaminationProfile) -> dict[Path, tuple[str, ...]]:
    try:
        return {Path(folder): videos_of(Path(folder)) for folder in profile.bench_videos}
    except BenchFileError as error:
        raise ProfileError(f"profile's decontamination.bench_videos: {error}; paths count from here") from error


def _say_of(name: str, say: Callable[[str], None], line: str) -> None:
    say(f"{name}: {line}")


def _row(video: str) -> SourceRow:
    return SourceRow(source_id=video, video=video, caption="of a bench", start_s=None, end_s=None, license="")


def _told(folder: str, cuts: Mapping[str, ClipSet]) -> dict[str, str]:
    return {
        clip_key(clip): f"[{clip.start_s:.2f}, {clip.end_s:.2f}) s of the bench video {folder}/{clip.video}"
        for item in cuts.values()
        for clip in item.clips
    }
