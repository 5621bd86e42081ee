"""Masks that come with a source go through plan, lake and agents into shards as they are."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.chain import Chain
from flows.plan import Plan, plan_build
from flows.profile_config import ROLES, load_profile
from flows.publish import publish_build
from flows.wiring import Site, agent_labels, annotator_needs, identify, make_agent
from infra import cutting as cutting_module
from infra.builds import KINDS, BuildCommand, read_quarantine, read_samples
from infra.given_store import given_store
from infra.lake import Lake
from infra.synthetic import write_clips
from infra.truth import ClipTruth, read_truth
from infra.video import probe, read_frames
from schemas.clip import Clip
from schemas.mask import decode
from schemas.quarantine import QuarantineEntry
from schemas.sample import Sample

SEED = 7


def planned(source: Path, lake: Path) -> Plan:
    return plan_build(source, None, Lake(lake), load_profile("embedded"), None, lambda line: None)


def given_ids(plan: Plan) -> dict[str, str]:
    return {clip.source_id: clip.given_sha256 for clip in plan.clips}


def test_clips_name_the_content_of_their_masks_and_the_lake_holds_it(layouts: Any, tmp_path: Path) -> None:
    split = layouts.mevis(tmp_path / "train", {"v1": layouts.small(), "v2": layouts.small()})
    ids = given_ids(planned(split, tmp_path / "lake"))
    assert ids["v1/0"] != ids["v1/1"]
    held = given_store(Lake(tmp_path / "lake")).read(ids.values())
    assert {name: len(held[key].objects) for name, key in ids.items()} == {"v1/0": 1, "v1/1": 2, "v2/0": 1, "v2/1": 2}


def test_a_second_plan_reads_neither_video_nor_masks(
    layouts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = layouts.mevis(tmp_path / "train", {"v1": layouts.small()})
    first = planned(split, tmp_path / "lake")

    def refuse(*args: object) -> None:
        raise AssertionError("a video or its masks were to be read")

    monkeypatch.setattr(cutting_module, "Child", refuse)
    assert planned(split, tmp_path / "lake") == first


def test_changed_masks_change_the_keys_of_their_own_clips_only(layouts: Any, tmp_path: Path, by_hand: Any) -> None:
    split = layouts.mevis(tmp_path / "train", {"v1": layouts.small(), "v2": layouts.small()})
    before = planned(split, tmp_path / "lake")
    masks = json.loads((split / "mask_dict.json").read_text())
    masks["100"][2] = masks["100"][3]
    (split / "mask_dict.json").write_text(json.dumps(masks))
    after = planned(split, tmp_path / "lake")
    chain = Chain(Lake(tmp_path / "lake"), by_hand.labels(), "tracks")
    changed = {
        old.source_id
        for old, new in zip(before.clips, after.clips, strict=True)
        if all(chain.keys(old)[role] != Chain(Lake(""), by_hand.labels(), "tracks").keys(new)[role] for role in ROLES)
    }
    assert changed == {"v2/0", "v2/1"}
    assert changed == {
        old.source_id for old, new in zip(before.clips, after.clips, strict=True) if old.clip_id != new.clip_id
    }


def test_a_changed_image_is_read_again(layouts: Any, tmp_path: Path) -> None:
    root = layouts.davis(tmp_path / "DAVIS", {"bear": layouts.small(num_frames=20)})
    before = given_ids(planned(root, tmp_path / "lake"))
    png = root / "Annotations" / "480p" / "bear" / "00003.png"
    png.write_bytes(layouts.png(np.eye(64, 96, dtype=np.uint8)))
    os.utime(png, (1, 1))
    assert given_ids(planned(root, tmp_path / "lake")) != before


def test_masks_that_were_deleted_from_the_lake_are_read_again(layouts: Any, tmp_path: Path) -> None:
    split = layouts.mevis(tmp_path / "train", {"v1": layouts.small()})
    before = planned(split, tmp_path / "lake")
    for part in (tmp_path / "lake" / "agents" / "given").rglob("part-*.parquet"):
        part.unlink()
    assert planned(split, tmp_path / "lake") == before
    assert set(given_ids(before).values()) == given_store(Lake(tmp_path / "lake")).keys()


def test_only_the_segmenter_is_handed_the_masks(layouts: Any, tmp_path: Path, by_hand: Any) -> None:
    split = layouts.mevis(tmp_path / "train", {"v1": layouts.small()})
    plan, lake = planned(split, tmp_path / "lake"), Lake(tmp_path / "lake")
    plain = by_hand.clip("plain")
    chain = Chain(lake, by_hand.labels(), "mentions")
    for clip in (*plan.clips, plain):
        by_hand.fill(chain, clip)
    jobs = {job.clip.clip_id: job for job in chain.jobs("segmenter", [*plan.clips, plain])}
    held = given_store(lake).read(given_ids(plan).values())
    for clip in plan.clips:
        assert jobs[clip.clip_id].given == held[clip.given_sha256]
    assert jobs["plain"].given is None
    assert {job.given for job in chain.jobs("annotator", plan.clips)} == {None}


@dataclass(frozen=True)
class Built:
    """A build of one layout, and the truth of each of its videos."""

    clips: dict[str, Clip]
    truths: dict[str, ClipTruth]
    samples: list[Sample]
    quarantine: list[QuarantineEntry]


def built(source: Path, folder: Path, truths: dict[str, ClipTruth]) -> Built:
    """The embedded agents over a source, each in this process; the wording model is left out for time's sake."""
    embedded = load_profile("embedded")
    profile = embedded.model_copy(update={"refiner": embedded.refiner.model_copy(update={"engine": "template"})})
    lake = Lake(folder / "lake")
    plan = plan_build(source, None, lake, profile, None, lambda line: None)
    labels = agent_labels(profile)
    chain = Chain(lake, labels, annotator_needs(profile))
    who = identify(profile, labels)
    site = Site(videos_root=str(plan.videos_root), frames_dir=str(folder / "frames"), identity=who)
    for role in ROLES:
        agent = make_agent(role, profile, site)
        agent.setup()
        jobs = chain.jobs(role, plan.clips)
        keys = [chain.keys(clip)[role] for clip in plan.clips]
        chain.store(role).append(list(zip(keys, agent.process(jobs), strict=True)))
        agent.close()
    result = publish_build(plan, chain, (), BuildCommand(source=str(source), profile="embedded"), lake, profile, site)
    samples = [sample for kind in KINDS for sample in read_samples(lake, result.build_id, kind)]
    clips = {clip.source_id: clip for clip in plan.clips}
    return Built(clips, truths, samples, list(read_quarantine(lake, result.build_id)))


@pytest.fixture(scope="module")
def builds(layouts: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Built]:
    """Synthetic clips laid out as MeViS and as DAVIS have theirs, their exact masks given with them."""
    folder = tmp_path_factory.mktemp("given")
    videos, truths = {}, {}
    for row in write_clips(folder / "clips", 2, SEED):
        path = folder / str(row["video"])
        truth, frames = read_truth(path), read_frames(path, range(probe(path).num_frames), 10_000)
        masks, said = {}, []
        for number, item in enumerate(truth.objects, start=1):
            of_item = [
                decode(c, *frames.shape[1:3]) if c else np.zeros(frames.shape[1:3], bool) for c in item.masks.rle
            ]
            masks[f"{number}"] = of_item
            said.append((f"the {item.noun} on the ground", (f"{number}",)))
        said += [("the leash that a squirrel holds", ("1",)), ("going on and on", ("1",))]
        videos[path.stem] = layouts.video(frames, masks, said)
        truths[path.stem] = truth
    for_davis = {
        name: layouts.video(video.frames, video.masks, [("the leash that a squirrel holds", ("1",))])
        for name, video in videos.items()
    }
    return {
        "mevis": built(layouts.mevis(folder / "train", videos), folder / "mevis", truths),
        "davis": built(layouts.davis(folder / "DAVIS", for_davis), folder / "davis", truths),
    }


@pytest.mark.weights
@pytest.mark.parametrize("layout", ["mevis", "davis"])
def test_shards_hold_the_given_counts_and_say_who_gave_them(builds: dict[str, Built], layout: str) -> None:
    build = builds[layout]
    assert {sample.kind for sample in build.samples} == set(KINDS)
    for sample in build.samples:
        truth = build.truths[Path(sample.video).name]
        given = [dict(zip(item.masks.frame_idx, item.masks.rle, strict=True)) for item in truth.objects]
        for item in sample.objects:
            (counts,) = [of_object for of_object in given if of_object[item.frame_idx[0]] == item.rle[0]]
            assert item.rle == tuple(counts[frame] for frame in item.frame_idx)
        assert "segmenter=given-by-source" in sample.provenance.engines
        assert not [weight for weight in sample.provenance.weights if weight.startswith("segmenter=")]


@pytest.mark.weights
def test_every_expression_ends_in_a_sample_or_in_quarantine(builds: dict[str, Built]) -> None:
    for build in builds.values():
        seen = {row.source_id for row in (*build.samples, *build.quarantine)}
        assert seen == set(build.clips)


@pytest.mark.weights
@pytest.mark.parametrize("layout", ["mevis", "davis"])
def test_a_noun_that_no_detector_knows_has_samples_and_other_nouns_have_none(
    builds: dict[str, Built], layout: str
) -> None:
    build = builds[layout]
    rows = {name for name, clip in build.clips.items() if "leash" in clip.caption}
    nouns = {item.noun for sample in build.samples if sample.source_id in rows for item in sample.objects}
    assert nouns == {"leash"}
    dropped = {(entry.noun, entry.reason) for entry in build.quarantine if entry.source_id in rows}
    assert dropped == {("squirrel", "no_masks_given"), ("that", "pronoun")}


@pytest.mark.weights
def test_an_expression_without_a_noun_has_samples_of_an_object(builds: dict[str, Built]) -> None:
    build = builds["mevis"]
    rows = {name for name, clip in build.clips.items() if clip.caption == "going on and on"}
    found = [sample for sample in build.samples if sample.source_id in rows]
    assert {sample.source_id for sample in found} == rows
    assert {item.noun for sample in found for item in sample.objects} == {"object"}
