"""A build is committed whole, accounts for everything, and is the same wherever the same records are."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flows.chain import Chain
from flows.publish import ClipOutputs, LostError, check_nothing_lost
from flows.result import BuildResult
from infra.builds import KINDS, latest_build, read_manifest, read_quarantine, read_samples, verify_build
from infra.lake import Lake
from schemas.caption import MentionText, MentionTextSet
from schemas.quarantine import QuarantineEntry
from schemas.sample import SampleSet
from schemas.track import TrackSet


def a_failure(clip: Any) -> QuarantineEntry:
    return QuarantineEntry(
        subject_id=clip.clip_id, source_id=clip.source_id, clip_id=clip.clip_id, stage="segmenter",
        reason="agent_died", evidence="2 tries: gone", retryable=True,
    )  # fmt: skip


def outputs_of(by_hand: Any, clip: Any, **changes: Any) -> ClipOutputs:
    made = {
        "mentions": by_hand.mentions(clip),
        "tracks": by_hand.tracks(clip),
        "captions": by_hand.captions(clip),
        "verdicts": by_hand.verdicts(clip),
        "samples": by_hand.samples(clip),
    }
    return ClipOutputs(clip=clip, **(made | changes))


def test_a_build_is_committed_sound_and_named_latest(lake_by_hand: Any) -> None:
    result = lake_by_hand.publish()
    assert result.is_new
    assert verify_build(lake_by_hand.lake, result.build_id) == []
    assert latest_build(lake_by_hand.lake) == result.build_id
    manifest = read_manifest(lake_by_hand.lake, result.build_id)
    assert manifest.labels == tuple(lake_by_hand.chain.labels.values())
    assert manifest.videos_root == str(lake_by_hand.source)
    for name in ("report.html", "README.md"):
        assert Path(result.folder, name).read_text()


def test_texts_on_mentions_are_counted_against_mentions(lake_by_hand: Any, by_hand: Any) -> None:
    lake_by_hand.chain = Chain(lake_by_hand.lake, by_hand.labels(), "mentions")
    for clip in lake_by_hand.plan.clips:
        cat = MentionText(
            mention_id=f"{clip.clip_id}-cat", noun="cat", appearance="It is red.", motion="It runs.", moving=True
        )
        dog = by_hand.drop(clip, f"{clip.clip_id}-dog", "annotator", "static_subject", "dog")
        texts = MentionTextSet(clip_id=clip.clip_id, texts=(cat,), rejected=(dog,))
        by_hand.fill(lake_by_hand.chain, clip, by_hand.outputs(clip) | {"annotator": texts})
    result = lake_by_hand.publish()
    assert verify_build(lake_by_hand.lake, result.build_id) == []
    num = len(lake_by_hand.plan.clips)
    entries = list(read_quarantine(lake_by_hand.lake, result.build_id))
    dogs = [entry.stage for entry in entries if entry.noun == "dog"]
    assert sorted(dogs) == ["annotator"] * num + ["segmenter"] * num
    page = Path(result.folder, "README.md").read_text()
    assert f"| annotator | {2 * num} mentions | {num} captions | {num} | static_subject {num} |" in page
    assert f"| reviewer | {num} tracks | {num} kept |" in page


def test_everything_that_came_in_is_accounted_for(lake_by_hand: Any) -> None:
    result = lake_by_hand.publish()
    lake, clips = lake_by_hand.lake, lake_by_hand.plan.clips
    for kind in KINDS:
        assert {sample.clip_id for sample in read_samples(lake, result.build_id, kind)} == {c.clip_id for c in clips}
    entries = list(read_quarantine(lake, result.build_id))
    assert [entry.reason for entry in entries] == ["no_caption"] + ["scenery", "not_found"] * 2
    assert {entry.subject_id for entry in entries[1:]} == {
        f"{clip.clip_id}-{noun}" for clip in clips for noun in ("dog", "tree")
    }
    assert (result.num_samples, result.num_quarantined, result.num_failed) == (12, 5, 0)


def test_samples_come_by_clip_then_by_their_id(lake_by_hand: Any) -> None:
    result = lake_by_hand.publish()
    for kind in KINDS:
        places = [(s.clip_id, s.sample_id) for s in read_samples(lake_by_hand.lake, result.build_id, kind)]
        assert places == sorted(places)
        assert len(places) == 4


def test_publishing_twice_writes_nothing_the_second_time(lake_by_hand: Any) -> None:
    first = lake_by_hand.publish()
    before = {path: path.stat().st_mtime_ns for path in Path(first.folder).rglob("*") if path.is_file()}
    second = lake_by_hand.publish()
    assert (second.build_id, second.is_new) == (first.build_id, False)
    assert second.counts == first.counts
    assert {path: path.stat().st_mtime_ns for path in Path(first.folder).rglob("*") if path.is_file()} == before


def test_going_back_to_an_older_build_makes_it_the_latest_again(lake_by_hand: Any) -> None:
    whole = lake_by_hand.publish()
    partly = lake_by_hand.publish((a_failure(lake_by_hand.plan.clips[0]),))
    assert partly.build_id != whole.build_id
    assert latest_build(lake_by_hand.lake) == partly.build_id
    assert lake_by_hand.publish().build_id == whole.build_id
    assert latest_build(lake_by_hand.lake) == whole.build_id


def test_the_same_records_give_the_same_bytes_in_another_lake(lake_by_hand: Any, by_hand: Any, tmp_path: Path) -> None:
    other = type(lake_by_hand)(by_hand, lake_by_hand.source, tmp_path / "elsewhere" / "lake")
    for clip in reversed(other.plan.clips):  # the order in which agents ended must not matter
        by_hand.fill(other.chain, clip)
    one, two = lake_by_hand.publish(), other.publish()
    assert one.build_id == two.build_id
    shards = read_manifest(lake_by_hand.lake, one.build_id).shards
    assert shards == read_manifest(other.lake, two.build_id).shards
    for entry in shards:
        assert lake_by_hand.lake.get(entry.path) == other.lake.get(entry.path)


def test_a_failed_clip_stands_in_quarantine_and_the_others_in_the_build(
    by_hand: Any, two_videos: Path, tmp_path: Path, lake_by_hand: Any
) -> None:
    made = type(lake_by_hand)(by_hand, two_videos, tmp_path / "other" / "lake")
    good, bad = made.plan.clips
    by_hand.fill(made.chain, good)
    by_hand.fill(made.chain, bad, {"analyzer": by_hand.mentions(bad)})
    result = made.publish((a_failure(bad),))
    entries = list(read_quarantine(made.lake, result.build_id))
    assert a_failure(bad) in entries
    assert {entry.subject_id for entry in entries if entry.clip_id == bad.clip_id} == {
        bad.clip_id,
        f"{bad.clip_id}-tree",
    }
    assert {s.clip_id for kind in KINDS for s in read_samples(made.lake, result.build_id, kind)} == {good.clip_id}
    assert result.num_failed == 1
    assert result.summary().splitlines()[-1] == (
        f"1 clips failed: videorefer quarantine list --lake {made.lake.address} --reason agent_died; "
        "quarantine retry tries them again"
    )


def test_what_another_build_finishes_of_a_given_up_clip_does_not_change_this_one(
    by_hand: Any, two_videos: Path, tmp_path: Path, lake_by_hand: Any
) -> None:
    alone = type(lake_by_hand)(by_hand, two_videos, tmp_path / "other" / "lake")
    good, bad = alone.plan.clips
    by_hand.fill(alone.chain, good)
    by_hand.fill(alone.chain, bad, {"analyzer": by_hand.mentions(bad)})
    beside = lake_by_hand  # here another build has finished the clip
    results = [made.publish((a_failure(bad),)) for made in (alone, beside)]
    assert results[0].build_id == results[1].build_id
    shards = [read_manifest(made.lake, results[0].build_id).shards for made in (alone, beside)]
    assert shards[0] == shards[1]
    assert {s.clip_id for kind in KINDS for s in read_samples(beside.lake, results[1].build_id, kind)} == {good.clip_id}
    assert results[0].counts == results[1].counts


def test_builds_that_fail_alike_commit_the_words_of_one_of_them(lake_by_hand: Any, tmp_path: Path) -> None:
    made, bad = lake_by_hand, lake_by_hand.plan.clips[1]
    said = [a_failure(bad).model_copy(update={"evidence": f"2 tries: {word}"}) for word in ("gone", "lost")]
    key, label = made.chain.keys(bad)["segmenter"], made.chain.labels["segmenter"]
    for entry in said:
        made.lake.failure_store(label).append([(key, entry)])
    shutil.copytree(made.lake.root, tmp_path / "copy")
    committed = []
    for root, entry in zip((Path(made.lake.root), tmp_path / "copy"), said, strict=True):
        other = type(made)(made.by_hand, made.source, root)
        build_id = other.publish((entry,)).build_id
        committed.append([e.evidence for e in read_quarantine(other.lake, build_id) if e.reason == "agent_died"])
    first = made.lake.failure_store(label).read([key])[key].evidence
    assert committed == [[first], [first]]


def test_of_builds_that_publish_the_same_at_once_one_writes_and_the_rest_take_it(
    lake_by_hand: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = lake_by_hand.plan.clips[1]
    said = [a_failure(bad).model_copy(update={"evidence": f"2 tries: {n}"}) for n in range(4)]
    put, num_puts = Lake.put, []

    def counted(self: Lake, name: str, data: bytes) -> None:
        num_puts.append(name)
        put(self, name, data)

    monkeypatch.setattr(Lake, "put", counted)
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda entry: lake_by_hand.publish((entry,)), said))
    assert len({result.build_id for result in results}) == 1
    assert sorted(result.is_new for result in results) == [False, False, False, True]
    assert sum(name.startswith("quarantine/") for name in num_puts) == 1
    assert verify_build(lake_by_hand.lake, results[0].build_id) == []


def test_a_build_is_the_same_wherever_its_source_lies_and_however_it_is_named(
    by_hand: Any, two_videos: Path, tmp_path: Path, lake_by_hand: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = set()
    moved = tmp_path / "moved" / two_videos.name
    shutil.copytree(two_videos, moved)
    monkeypatch.chdir(moved.parent)
    for number, source in enumerate((two_videos, moved, Path(moved.name))):
        made = type(lake_by_hand)(by_hand, source, tmp_path / f"lake-{number}" / "lake")
        for clip in made.plan.clips:
            by_hand.fill(made.chain, clip)
        ids.add(made.publish().build_id)
    assert len(ids) == 1


def test_a_lost_clip_stops_the_build_before_it_is_committed(
    by_hand: Any, two_videos: Path, tmp_path: Path, lake_by_hand: Any
) -> None:
    made = type(lake_by_hand)(by_hand, two_videos, tmp_path / "other" / "lake")
    by_hand.fill(made.chain, made.plan.clips[0])
    with pytest.raises(LostError, match=made.plan.clips[1].clip_id):
        made.publish()
    assert latest_build(made.lake) is None


def test_a_source_without_any_clip_still_gives_a_build(make_video: Any, by_hand: Any, lake_by_hand: Any) -> None:
    silent = make_video("silent/a.mp4").parent
    result = type(lake_by_hand)(by_hand, silent, silent.parent / "silent-lake").publish()
    assert (result.num_samples, result.num_quarantined) == (0, 1)
    assert verify_build(Lake(silent.parent / "silent-lake"), result.build_id) == []


def test_nothing_is_lost_of_a_clip_that_went_through(by_hand: Any) -> None:
    check_nothing_lost(outputs_of(by_hand, by_hand.clip()))


def test_a_mention_without_track_or_reason_is_lost(by_hand: Any) -> None:
    tracks = by_hand.tracks(by_hand.clip()).model_copy(update={"rejected": ()})
    with pytest.raises(LostError, match="clip c1: neither in a sample nor in quarantine: c1-dog"):
        check_nothing_lost(outputs_of(by_hand, by_hand.clip(), tracks=tracks))


def test_a_track_without_sample_or_reason_is_lost(by_hand: Any) -> None:
    samples = SampleSet(clip_id="c1", samples=(), rejected=())
    with pytest.raises(LostError, match="in quarantine: c1-t1"):
        check_nothing_lost(outputs_of(by_hand, by_hand.clip(), samples=samples))


def test_a_track_that_was_dropped_for_a_reason_is_not_lost(by_hand: Any) -> None:
    clip = by_hand.clip()
    dropped = by_hand.drop(clip, "c1-t1", "reviewer", "class_mismatch", "cat")
    verdicts = by_hand.verdicts(clip).model_copy(update={"rejected": (dropped,)})
    samples = SampleSet(clip_id="c1", samples=(), rejected=())
    check_nothing_lost(outputs_of(by_hand, clip, verdicts=verdicts, samples=samples))


def test_a_clip_of_which_nothing_is_said_left_no_trace(by_hand: Any) -> None:
    mentions = by_hand.mentions(by_hand.clip()).model_copy(update={"mentions": (), "rejected": ()})
    nothing = {
        "tracks": TrackSet(clip_id="c1", tracks=(), rejected=()),
        "samples": SampleSet(clip_id="c1", samples=(), rejected=()),
    }
    with pytest.raises(LostError, match="clip c1 left no trace"):
        check_nothing_lost(outputs_of(by_hand, by_hand.clip(), mentions=mentions, **nothing))


def test_the_result_says_the_figures_of_the_build(lake_by_hand: Any) -> None:
    result = lake_by_hand.publish()
    split = lake_by_hand.plan.clips[0].split
    counts = {(entry.group, entry.name): entry.n for entry in result.counts}
    assert counts["samples", f"qa basic {split}"] == 4
    assert counts["quarantine", "segmenter not_found"] == 2
    assert counts["stages", "segmenter: tracks"] == 2
    said = result.summary()
    assert said.splitlines()[0] == f"build {result.build_id} committed: 12 samples, 5 quarantined"
    assert f"    4 qa basic {split}" in said
    assert result.report_uri.startswith("file:///")
    assert result.report_uri in said
    page = result.markdown()
    assert "12 samples, 5 quarantined, 0 clips failed" in page
    assert "| segmenter not_found | 2 |" in page
    assert "| segmenter: tracks | 2 |" in page
    assert "unchanged, already committed" in lake_by_hand.publish().summary()


def test_a_build_in_an_object_store_is_named_by_its_address(lake_by_hand: Any) -> None:
    manifest = read_manifest(lake_by_hand.lake, lake_by_hand.publish().build_id)
    result = BuildResult.of(manifest, Lake("memory://bucket/lake"), is_new=True)
    assert result.report_uri == f"memory:///bucket/lake/builds/{manifest.build_id}/report.html"
    assert result.lake == "memory://bucket/lake"
