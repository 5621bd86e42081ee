"""What a bench asks about, and copies of held-out clips, never enter `train`; every clip kept out is in quarantine."""

import hashlib
import itertools
import json
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from rich.console import Console

from flows.dry_run import dry_run, print_dry_run
from flows.plan import Plan, plan_build
from flows.preflight import preflight
from flows.profile_config import DecontaminationProfile, Profile, load_profile
from flows.profile_files import ProfileError
from flows.quarantine import Choice, QuarantineError, list_quarantine, retry, tell
from infra import cutting as cutting_module
from infra.fingerprint import NEAR
from infra.fingerprint_store import fingerprint_store
from infra.lake import Lake
from infra.synthetic import write_clips
from infra.video import probe, read_frames
from schemas.clip import Split, split_of

MakeVideo = Callable[..., Path]


def put_in_split(video: Path, split: Split) -> None:
    """Append an empty box, which players skip: the bytes decide the split."""
    data = video.read_bytes()
    tries = (data + struct.pack(">I4sI", 12, b"free", number) for number in itertools.count())
    video.write_bytes(next(each for each in tries if split_of(hashlib.sha256(each).hexdigest()) == split))


def write_copy(video: Path, copy: Path, first: int, end: int) -> None:
    """Frames [first, end) at half the size, encoded again with a coarse hand."""
    height_px, width_px = (side // 2 for side in read_frames(video, [0], 10_000).shape[1:3])
    frames = read_frames(video, range(first, end), max(height_px, width_px))
    with av.open(str(copy), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25), options={"crf": "33", "preset": "veryfast"})
        stream.height, stream.width = height_px // 2 * 2, width_px // 2 * 2
        stream.pix_fmt = "yuv420p"
        for image in frames[:, : stream.height, : stream.width]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode(None))


class Videos:
    """A source of captioned videos, one scene each, in the split that a test wants them in."""

    def __init__(self, make_video: MakeVideo, folder: Path) -> None:
        self._make_video, self.folder, self.source = make_video, folder, folder / "source"

    def add(self, name: str, scene: int, split: Split, caption: str = "A cat.") -> Path:
        video = self._make_video(f"source/{name}", size_px=(96, 160), num_frames=40, cuts=(0,) * scene)
        return self._captioned(video, split, caption)

    def add_copy(self, name: str, of: Path, split: Split, caption: str = "A dog.") -> Path:
        copy = self.source / name
        copy.parent.mkdir(exist_ok=True)
        write_copy(of, copy, 8, 36)
        return self._captioned(copy, split, caption)

    def _captioned(self, video: Path, split: Split, caption: str) -> Path:
        put_in_split(video, split)
        video.with_suffix(".json").write_text(json.dumps({"id": f"row-{video.stem}", "caption": caption}))
        return video

    def profile(self, **settings: Sequence[Path] | float) -> Profile:
        said = {
            name: [str(path) for path in value] if isinstance(value, Sequence) else value
            for name, value in settings.items()
        }
        decontamination = DecontaminationProfile.model_validate(said)
        return load_profile("embedded").model_copy(update={"decontamination": decontamination})

    def plan(self, say: Callable[[str], None] = lambda line: None, **settings: Sequence[Path] | float) -> Plan:
        return plan_build(self.source, None, self.lake, self.profile(**settings), None, say)

    @property
    def lake(self) -> Lake:
        return Lake(self.folder / "lake")


@pytest.fixture
def videos(make_video: MakeVideo, tmp_path: Path) -> Videos:
    """An empty source."""
    return Videos(make_video, tmp_path)


@pytest.fixture
def no_cutting(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, opening a video is an error."""

    def refuse(*args: object) -> None:
        raise AssertionError("a video was to be read")

    return lambda: monkeypatch.setattr(cutting_module, "Child", refuse)


def rows_of(plan: Plan) -> list[str]:
    return [clip.source_id for clip in plan.clips]


def dropped(plan: Plan) -> dict[str, str]:
    assert all(entry.stage == "source" and not entry.retryable for entry in plan.rejected)
    return {entry.source_id: entry.reason for entry in plan.rejected}


def test_a_copy_of_a_held_out_clip_is_kept_out_of_train(videos: Videos) -> None:
    original = videos.add("a.mp4", 0, "held_out")
    videos.add("b.mp4", 1, "train")
    videos.add_copy("c.mp4", original, "train")
    plan = videos.plan()
    assert rows_of(plan) == ["row-a", "row-b"]
    assert dropped(plan) == {"row-c": "near_duplicate"}
    (entry,) = plan.rejected
    assert entry.subject_id == entry.clip_id
    assert entry.evidence.endswith(f"from clip {plan.clips[0].clip_id} of row row-a, which is held out")
    assert float(entry.evidence.split()[1]) <= NEAR
    assert tuple(clip for unit in plan.units for clip in unit) == plan.clips


def test_a_train_clip_is_dropped_where_the_copy_is_the_one_held_out(videos: Videos) -> None:
    original = videos.add("a.mp4", 0, "train")
    videos.add_copy("b.mp4", original, "held_out")
    assert dropped(videos.plan()) == {"row-a": "near_duplicate"}


def test_all_captions_of_a_copy_are_dropped(videos: Videos) -> None:
    original = videos.add("a.mp4", 0, "held_out")
    videos.add_copy("c.mp4", original, "train")
    manifest = videos.source / "rows.csv"
    manifest.write_text("id,video,caption\n1,c.mp4,A cat.\n2,a.mp4,A cow.\n3,c.mp4,A dog.\n")
    plan = plan_build(manifest, None, videos.lake, videos.profile(), None, lambda line: None)
    assert (rows_of(plan), dropped(plan)) == (["2"], dict.fromkeys("13", "near_duplicate"))


def test_unlike_clips_and_copies_within_a_split_stay(videos: Videos) -> None:
    one = videos.add("a.mp4", 0, "train")
    videos.add_copy("b.mp4", one, "train")
    two = videos.add("c.mp4", 1, "held_out")
    videos.add_copy("d.mp4", two, "held_out")
    plan = videos.plan()
    assert (rows_of(plan), plan.rejected) == ([f"row-{name}" for name in "abcd"], ())


def test_the_distance_is_the_profiles(videos: Videos) -> None:
    original = videos.add("a.mp4", 0, "held_out")
    videos.add_copy("b.mp4", original, "train")
    assert rows_of(videos.plan(near_distance=0.0)) == ["row-a", "row-b"]
    assert rows_of(videos.plan()) == ["row-a"]


@pytest.mark.weights
def test_a_copy_of_a_painted_clip_is_found_and_other_painted_clips_are_not(tmp_path: Path, make_video: Any) -> None:
    videos = Videos(make_video, tmp_path)
    rows = write_clips(videos.source, 3, 7)
    paths = [videos.source / Path(str(row["video"])).name for row in rows]
    put_in_split(paths[0], "held_out")
    for path in paths[1:]:
        put_in_split(path, "train")
    write_copy(paths[0], videos.source / "copy.mp4", 5, probe(paths[0]).num_frames - 5)
    put_in_split(videos.source / "copy.mp4", "train")
    manifest = videos.source / "rows.csv"
    names = [*(path.name for path in paths), "copy.mp4"]
    manifest.write_text("\n".join(["id,video,caption", *(f"{name},{name},A cat." for name in names)]))
    plan = plan_build(manifest, None, videos.lake, videos.profile(), None, lambda line: None)
    assert (rows_of(plan), dropped(plan)) == (names[:3], {"copy.mp4": "near_duplicate"})


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_a_video_that_a_bench_asks_about_is_kept_out_and_never_opened(
    videos: Videos, split: Split, tmp_path: Path, no_cutting: Callable[[], None]
) -> None:
    videos.add("rLlzmcp3J6s_00012.mp4", 0, split)
    items = tmp_path / "Bench-D.json"
    items.write_text(json.dumps([{"video": "rLlzmcp3J6s_0:01:09.633_0:01:14.333.mp4"}]))
    no_cutting()
    plan = videos.plan(bench_items=[items])
    assert (plan.clips, plan.num_rows) == ((), 1)
    (entry,) = plan.rejected
    assert (entry.source_id, entry.stage, entry.reason) == ("row-rLlzmcp3J6s_00012", "source", "bench_video")
    assert entry.evidence == ("rLlzmcp3J6s_00012.mp4 bears the video id rLlzmcp3J6s, about which Bench-D.json asks")


def test_copies_of_bench_videos_are_kept_out_of_train_and_the_second_plan_decodes_nothing(
    videos: Videos, make_video: MakeVideo, tmp_path: Path, no_cutting: Callable[[], None]
) -> None:
    for name, split in (("a", "train"), ("b", "held_out")):
        bench = make_video(f"bench/deep/{name}.mp4", size_px=(96, 160), num_frames=50, cuts=(0,) * (name == "b"))
        videos.add_copy(f"{name}.mp4", bench, split)
    (tmp_path / "bench" / "broken.mp4").write_text("no video")
    videos.add("c.mp4", 2, "train")
    lines: list[str] = []
    plan = videos.plan(lines.append, bench_videos=[tmp_path / "bench"])
    assert (rows_of(plan), dropped(plan)) == (["row-b", "row-c"], {"row-a": "near_duplicate"})
    assert plan.rejected[0].evidence.endswith("from [0.00, 2.00) s of the bench video bench/deep/a.mp4")
    said = "bench: 1 of 3 bench videos cannot be read, so copies of them are not found; the first: broken.mp4"
    assert any(line.startswith(said) for line in lines)
    (tmp_path / "bench" / "broken.mp4").unlink()
    no_cutting()
    assert videos.plan(bench_videos=[tmp_path / "bench"]) == plan


@pytest.mark.parametrize(
    ("key", "name", "said"),
    [
        ("bench_items", "broken.json", "is no JSON array"),
        ("bench_items", "absent.json", "cannot be read"),
        ("bench_videos", "absent", "is no folder"),
        ("bench_videos", "empty", "holds no video"),
    ],
)
def test_a_bench_that_cannot_be_read_stops_before_any_work(
    videos: Videos, tmp_path: Path, key: str, name: str, said: str
) -> None:
    videos.add("a.mp4", 0, "train")
    (tmp_path / "broken.json").write_text('[{"video": "a"}')
    (tmp_path / "empty").mkdir()
    profile = tmp_path / "mine.toml"
    shipped = Path(__file__).parents[2] / "flows" / "profiles" / "embedded.toml"
    profile.write_text(f'{shipped.read_text()}\n[decontamination]\n{key} = ["{tmp_path / name}"]\n')
    source, lake = str(videos.source), tmp_path / "lake"
    refused = pytest.raises(ProfileError, match=f"^[^\\n]*decontamination.{key}: .*{said}[^\\n]*$")
    with refused:
        preflight(source, None, str(lake), str(profile))
    with refused:
        videos.plan(**{key: [tmp_path / name]})
    with refused:
        dry_run(source, None, videos.lake, load_profile(str(profile)), None)
    assert not lake.exists()


def test_a_lake_without_fingerprints_gets_them(videos: Videos) -> None:
    original = videos.add("a.mp4", 0, "held_out")
    videos.add_copy("b.mp4", original, "train")
    first = videos.plan()
    keys = fingerprint_store(videos.lake).keys()
    for part in (videos.folder / "lake" / "agents" / "fingerprint").rglob("part-*.parquet"):
        part.unlink()
    before = dry_run(str(videos.source), None, videos.lake, videos.profile(), None)
    assert (before.uncut, before.clips, before.near_duplicates) == (0, 2, 0)
    assert videos.plan() == first
    assert fingerprint_store(videos.lake).keys() == keys


KILLED = """
import os, signal, sys
from pathlib import Path
from flows import cut_rows
from flows.plan import plan_build
from flows.profile_config import load_profile
from infra.lake import AgentStore, Lake
cut_rows.RUNS_AT_ONCE = 1
appends = []
whole = AgentStore.append
def append(store, rows):
    whole(store, rows)
    appends.append(rows)
    if len([rows for rows in appends if rows]) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
AgentStore.append = append
plan_build(Path(sys.argv[1]), None, Lake(sys.argv[2]), load_profile("embedded"), None, print)
"""


@pytest.mark.parametrize("commits", [1, 2, 3])
def test_a_killed_plan_goes_on(videos: Videos, commits: int) -> None:
    """Each video commits its fingerprints, then its cuts; killed between them, both are there in the end, once."""
    original = videos.add("a.mp4", 0, "held_out")
    videos.add_copy("b.mp4", original, "train")
    args = [sys.executable, "-c", KILLED, str(videos.source), videos.lake.address, str(commits)]
    assert subprocess.run(args, check=False).returncode == -signal.SIGKILL
    lines: list[str] = []
    plan = videos.plan(lines.append)
    assert (rows_of(plan), dropped(plan)) == (["row-a"], {"row-b": "near_duplicate"})
    left = 2 - commits // 2
    assert lines == [f"cut {left} of {left} new rows into clips"]
    parts = list((videos.folder / "lake" / "agents" / "fingerprint").rglob("part-*.parquet"))
    assert len(fingerprint_store(videos.lake).keys()) == 2
    assert len(parts) == 2


def test_a_dry_run_tells_what_is_kept_out(videos: Videos, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = videos.add("a.mp4", 0, "held_out")
    videos.add_copy("b.mp4", original, "train")
    videos.add("bear.mp4", 1, "train")
    items = tmp_path / "q.json"
    items.write_text(json.dumps([{"video": "DAVIS/JPEGImages/480p/bear"}]))
    before = dry_run(str(videos.source), None, videos.lake, videos.profile(bench_items=[items]), None)
    assert (before.uncut, before.bench_videos, before.near_duplicates) == (2, 1, 0)
    plan = videos.plan(bench_items=[items])
    found = dry_run(str(videos.source), None, videos.lake, videos.profile(bench_items=[items]), None)
    assert (found.uncut, found.clips, found.bench_videos, found.near_duplicates) == (0, len(plan.clips), 1, 1)
    print_dry_run(found, Console())
    said = capsys.readouterr().out
    assert "1 rows are videos that a bench asks about and are kept out" in said
    assert "1 clips are copies of held-out clips or of bench videos and are kept out" in said


def test_a_build_tells_of_a_copy_as_of_any_row_that_was_dropped(
    two_videos: Path, request: pytest.FixtureRequest
) -> None:
    put_in_split(two_videos / "a.mp4", "held_out")
    (two_videos / "copy.mp4").write_bytes((two_videos / "a.mp4").read_bytes())
    put_in_split(two_videos / "copy.mp4", "train")
    (two_videos / "copy.txt").write_text("A dog.")
    made = request.getfixturevalue("lake_by_hand")
    result = made.publish()
    listed = list_quarantine(made.lake, result.build_id, Choice(reasons=["near_duplicate"]), 5)
    (entry,) = listed.entries
    assert entry in made.plan.rejected
    assert "near_duplicate" in (Path(made.lake.root) / "builds" / result.build_id / "README.md").read_text()
    (story,) = tell(made.lake, result.build_id, entry.clip_id, 1)
    assert story.clip is not None
    assert story.clip.video == "copy.mp4"
    with pytest.raises(QuarantineError, match="near_duplicate: only a change of the source helps"):
        retry(made.lake, result.build_id, Choice(names=[entry.clip_id]))
