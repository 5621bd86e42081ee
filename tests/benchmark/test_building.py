"""Items drawn from the held-out samples of a build."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest

from benchmark.bench_folder import bench_readme, write_bench
from benchmark.building import BenchBuildError, BenchPlan, new_bench
from benchmark.items import description_items, question_items
from infra.builds import BuildWriter, Manifest
from infra.lake import Lake
from schemas.label import AgentLabel
from schemas.mask import decode, encode
from schemas.sample import SCHEMA_VERSION, Provenance, Sample, SampleObject, Turn
from schemas.track import ObjectMasks, Track

HEIGHT, WIDTH = 12, 16
NOUNS = ("cat", "dog", "bus", "cup", "man")
PLACES = ("on the left", "on the right", "at the top", "at the bottom", "in the middle")
TRAIN_PLACE = "at the top left"
FIRST_PHRASINGS = ("Where in the frame is <region> at first?", "In which part of the frame is <region> first seen?")
PROVENANCE = Provenance(engines=(), weights=(), prompt_hashes=(), revisions=(), verdict="", wording="template")
LABEL = AgentLabel(agent="annotator", engine="by | hand", weights=(), config_json="{}", prompt_hash="", revision=1)


def masks(object_number, frames):
    """Frames 0 to 19 of an object: a square that grows with the frame, None where it is out of sight."""
    rle = []
    for frame in range(20):
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[: 1 + frame // 4, 8 * (object_number % 2) :][:, : 1 + frame // 4] = True
        rle.append(encode(mask) if frame in frames else None)
    return rle


class World:
    """Builds by hand: clips of two objects each, in sight in the frames that `sights` says."""

    def __init__(self, folder):
        self.lake = Lake(folder)
        self.sights = {}

    def build(self, num_held_out=12, num_train=3, kinds=("detailed_caption", "qa"), build_id="b1"):
        samples, tracks = [], []
        for number in range(num_held_out + num_train):
            split = "held_out" if number < num_held_out else "train"
            samples += [sample for sample in self.samples(number, split) if sample.kind in kinds]
            tracks += [self.track(number, which) for which in (0, 1)]
        writer = BuildWriter(self.lake, build_id)
        order = sorted(samples, key=lambda sample: (sample.clip_id, sample.sample_id))
        for kind in ("short_caption", "detailed_caption", "qa"):
            writer.write_samples(kind, [sample for sample in order if sample.kind == kind])
        writer.write_tracks(tracks)
        writer.write_quarantine([])
        writer.commit(
            Manifest(
                build_id=build_id, schema_version=SCHEMA_VERSION, created_at="2025-01-01T00:00:00+00:00", source="s",
                videos_root="s", profile_name="embedded", profile_json="{}", labels=(LABEL,), counts=(),
            )
        )  # fmt: skip
        self.by_id = {sample.sample_id: sample for sample in samples}

    def seen(self, number, which):
        return self.sights.get((number, which), range(20))

    def track(self, number, which):
        rle = masks(which, self.seen(number, which))
        return Track(
            track_id=f"t{number}-{which}", clip_id=f"c{number:02d}", mention_id="m", noun=NOUNS[number % 5],
            masks=ObjectMasks(
                detector_class="x", frame_idx=tuple(range(20)), frame_time_s=tuple(i / 10 for i in range(20)),
                rle=tuple(rle), height_px=HEIGHT, width_px=WIDTH, score=1,
            ),
        )  # fmt: skip

    def samples(self, number, split):
        noun, place = NOUNS[number % 5], PLACES[number % 5 if number % 3 else (number + 1) % 5]
        if split == "train":
            place = TRAIN_PLACE
        both = "There are 2 objects in the video: <object0><region>, <object1><region>."
        asked = [
            ("basic", "What is <region>?", f"It is a {noun}."),
            ("basic", FIRST_PHRASINGS[number % 2], f"At first, the {noun} is {place} of the frame."),
            ("basic", "How quaint is <region>?", f"The {noun} is {place}."),
            ("reasoning", "Describe the path of <region> through the frame.", f"The {noun} starts {place}."),
            ("reasoning", "By which colours can <region> be recognised?", f"The {noun} is {place}. It stays."),
            ("reasoning", f"{both}\nWhich object moves faster?", f"<object0>, the {noun}, is faster {place}."),
            ("future", "What is <region> most likely to do next?", f"The {noun} will end up {place}."),
        ]
        yield self.sample(number, split, "detailed_caption", "none", "Describe <region>.", f"A {noun} {number}.")
        for qa_type, question, answer in asked:
            yield self.sample(number, split, "qa", qa_type, question, answer)

    def sample(self, number, split, kind, qa_type, question, answer):
        return Sample(
            sample_id=hashlib.sha256(f"{number}{question}".encode()).hexdigest()[:8], kind=kind, qa_type=qa_type,
            split=split, clip_id=f"c{number:02d}", source_id=f"r{number}", video=f"v/{number}.mp4",
            video_sha256=f"{number:064x}", license="CC0", start_s=0, end_s=2,
            visible_until_s=1.2 if qa_type == "future" else 2, fps=10, height=HEIGHT, width=WIDTH,
            conversations=(
                Turn(speaker="human", value=f"<video>\n{question}"), Turn(speaker="gpt", value=answer)
            ),
            objects=tuple(self.object(number, which) for which in range(question.count("<region>"))),
            provenance=PROVENANCE,
        )  # fmt: skip

    def object(self, number, which):
        """Every other frame in sight, also those after `visible_until_s`."""
        rle = masks(which, self.seen(number, which))
        frames = [frame for frame in range(20) if rle[frame]][::2]
        return SampleObject(
            object_id=f"t{number}-{which}", noun=NOUNS[number % 5], frame_idx=tuple(frames),
            frame_time_s=tuple(frame / 10 for frame in frames), rle=tuple(rle[frame] for frame in frames),
        )  # fmt: skip


@pytest.fixture
def world(tmp_path):
    return World(tmp_path / "lake")


def test_questions_are_the_held_out_samples_in_the_official_form(world):
    world.build()
    bench = new_bench(world.lake, "b1", BenchPlan())
    told = {sample.conversations[1].value for sample in world.by_id.values() if sample.split == "held_out"}
    forms = {text.replace(f" {noun}", " #").removesuffix(".") for text in told for noun in NOUNS if f" {noun}" in text}
    assert len(bench.questions) == 7 * 12
    for row in bench.questions:
        sample = world.by_id[row["sample_id"]]
        noun = sample.objects[0].noun
        assert list(row)[:8] == ["id", "video", "Question", "type", "options", "Answer", "frame_idx", "annotation"]
        assert sample.split == "held_out"
        assert row["video"] == sample.video
        assert f"<video>\n{row['Question']}" == sample.conversations[0].value
        assert row["Answer"][4:] + "." == sample.conversations[1].value
        assert row["options"].count(row["Answer"]) == 1
        assert [option[:4] for option in row["options"]] == ["(A) ", "(B) ", "(C) ", "(D) "]
        texts = [option[4:] for option in row["options"]]
        assert len(set(texts)) == 4
        assert all(TRAIN_PLACE not in text for text in texts)
        if row["Question"] != "What is <region>?":
            assert all(text.replace(f" {noun}", " #") in forms for text in texts)
        assert len(row["annotation"]) == row["Question"].count("<region>")


def test_each_question_has_its_official_type(world):
    world.build()
    types = {
        row["Question"].rpartition("\n")[2]: row["type"] for row in new_bench(world.lake, "b1", BenchPlan()).questions
    }
    assert types == {
        "What is <region>?": "Basic Questions",
        "How quaint is <region>?": "Basic Questions",
        FIRST_PHRASINGS[0]: "Sequential Questions",
        FIRST_PHRASINGS[1]: "Sequential Questions",
        "Describe the path of <region> through the frame.": "Sequential Questions",
        "By which colours can <region> be recognised?": "Reasoning Questions",
        "Which object moves faster?": "Relationship Questions",
        "What is <region> most likely to do next?": "Future Predictions",
    }


def test_right_answers_are_spread_evenly_over_the_letters(world):
    world.build()
    questions = new_bench(world.lake, "b1", BenchPlan(max_questions=61)).questions
    letters = Counter(row["Answer"][1] for row in questions)
    assert len(questions) == 61
    assert max(letters.values()) - min(letters[letter] for letter in "ABCD") <= 1
    for name in {row["type"] for row in questions}:
        of_type = Counter(row["Answer"][1] for row in questions if row["type"] == name)
        assert max(of_type.values()) - min(of_type[letter] for letter in "ABCD") <= 2


def test_phrasings_of_one_fact_lend_one_another_answers(world):
    world.build(num_held_out=6)
    # each phrasing is asked of three clips, and four answers are needed
    firsts = [
        row for row in new_bench(world.lake, "b1", BenchPlan(min_clips=6)).questions if "first" in row["Question"]
    ]
    assert {row["Question"] for row in firsts} == set(FIRST_PHRASINGS)


def test_descriptions_are_the_detailed_captions(world):
    world.build()
    rows = new_bench(world.lake, "b1", BenchPlan()).descriptions
    assert [row["id"] for row in rows] == list(range(12))
    assert {row["caption"] for row in rows} == {f"A {NOUNS[number % 5]} {number}." for number in range(12)}
    for row in rows:
        assert list(row)[:5] == ["id", "video", "caption", "frame_idx", "annotation"]
        assert row["caption"].split()[-1] == f"{row['source_id'][1:]}."
        assert len(row["annotation"]) == 1


def test_every_item_says_what_it_is_made_from_and_that_nobody_checked_it(world):
    world.build()
    bench = new_bench(world.lake, "b1", BenchPlan())
    for row in (*bench.descriptions, *bench.questions):
        sample = world.by_id[row["sample_id"]]
        assert (row["made_by"], row["checked"], row["build_id"]) == ("machine", False, "b1")
        for name in ("clip_id", "source_id", "video_sha256", "license", "start_s", "end_s", "visible_until_s"):
            assert row[name] == getattr(sample, name)


def test_masks_are_those_of_the_tracks_and_end_where_sight_ends(world):
    world.sights = {(3, 0): range(4, 9)}
    world.build()
    bench = new_bench(world.lake, "b1", BenchPlan())
    lasts = set()
    for row in (*bench.descriptions, *bench.questions):
        number = int(row["source_id"][1:])
        for which, by_frame in enumerate(row["annotation"]):
            truth = masks(which, world.seen(number, which))
            assert list(by_frame) == sorted(by_frame, key=int)
            lasts.add((row.get("type") == "Future Predictions", max(map(int, by_frame)) / 10))
            for frame, entry in by_frame.items():
                counts = entry["segmentation"]["counts"]
                assert entry["segmentation"]["size"] == [HEIGHT, WIDTH]
                assert np.array_equal(decode(counts, HEIGHT, WIDTH), decode(truth[int(frame)], HEIGHT, WIDTH))
    assert max(last for is_future, last in lasts if is_future) == 1.0
    assert max(last for is_future, last in lasts if not is_future) == 1.8


def test_an_object_unseen_before_sight_ends_asks_for_no_future(world):
    world.sights = {(3, 0): range(14, 20)}
    world.build()
    bench = new_bench(world.lake, "b1", BenchPlan())
    assert bench.left_out == {"an object without a mask before visible_until_s": 1}
    asked_of = {row["source_id"] for row in bench.questions if row["type"] == "Future Predictions"}
    assert asked_of == {f"r{number}" for number in range(12) if number != 3}


def test_the_single_frame_shows_all_objects_as_large_as_may_be(world):
    world.sights = {(0, 0): range(10), (0, 1): range(5, 20), (1, 0): range(8), (1, 1): range(8, 20)}
    world.build()
    bench = new_bench(world.lake, "b1", BenchPlan())
    frames = {row["source_id"]: row for row in bench.questions if row["type"] == "Relationship Questions"}
    # the squares grow at frames 4, 8, 12 and 16, and samples have every other frame only
    assert frames["r0"]["frame_idx"] == "8"
    assert all(masks["8"]["segmentation"] for masks in frames["r0"]["annotation"])
    assert frames["r1"]["frame_idx"] == "16"
    assert [masks["16"]["segmentation"] is None for masks in frames["r1"]["annotation"]] == [True, False]
    assert frames["r2"]["frame_idx"] == "16"
    assert "In 1 items\nthe objects are never seen in one frame" in bench_readme(bench)


def test_limits_are_shared_by_types_and_clips(world):
    world.build(num_held_out=20)
    bench = new_bench(world.lake, "b1", BenchPlan(max_descriptions=7, max_questions=100))
    assert len(bench.descriptions) == 7
    # 40 basic, 40 sequential, 20 each of the others
    assert set(Counter(row["type"] for row in bench.questions).values()) == {20}
    per_clip = Counter(row["clip_id"] for row in bench.questions if row["type"] == "Basic Questions")
    assert set(per_clip.values()) == {1}
    assert bench.left_out == {"over the limit": 13 + 40}
    wider = new_bench(world.lake, "b1", BenchPlan(max_questions=130)).questions
    assert sorted(Counter(row["type"] for row in wider).values()) == [20, 20, 20, 35, 35]


def test_the_same_build_and_seed_give_the_same_bytes(world, tmp_path):
    world.build()
    written = {}
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        write_bench(new_bench(world.lake, "b1", BenchPlan(seed=seed, max_questions=40)), Lake(tmp_path / name))
        written[name] = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
    assert set(written["one"]) == {"bench-d.json", "bench-q.json", "README.md"}
    assert written["one"] == written["two"]
    assert written["one"]["bench-q.json"] != written["three"]["bench-q.json"]


def test_files_are_read_as_bench_files(world, tmp_path):
    world.build()
    bench = new_bench(world.lake, "b1", BenchPlan())
    write_bench(bench, Lake(tmp_path / "out"))
    assert json.loads((tmp_path / "out/bench-q.json").read_text()) == list(bench.questions)
    assert [item.answer for item in question_items(tmp_path / "out/bench-q.json")] == [
        row["Answer"] for row in bench.questions
    ]
    assert len(description_items(tmp_path / "out/bench-d.json")) == 12


def test_the_page_counts_the_types_and_says_that_a_machine_made_them(world):
    world.build()
    page = bench_readme(new_bench(world.lake, "b1", BenchPlan()))
    assert "Machine-made until checked by hand" in page
    assert "| `bench-d.json` | descriptions | 12 |" in page
    assert "| `bench-q.json` | Sequential Questions | 24 | 6 | 6 | 6 | 6 |" in page
    assert "| `bench-q.json` | all | 84 | 21 | 21 | 21 | 21 |" in page
    assert "on the 12\nFuture Predictions here" in page
    assert "| annotator | by \\| hand |" in page


def test_too_few_held_out_clips_are_refused(world):
    world.build(num_held_out=6, num_train=30)
    with pytest.raises(BenchBuildError) as refused:
        new_bench(world.lake, "b1", BenchPlan())
    assert str(refused.value) == (
        "build b1 has 6 held_out clips with a detailed caption or a question, a bench needs 10; one video in ten is "
        "held out, so add about 40 videos and build again"
    )


def test_a_build_whose_samples_give_no_item_is_refused(world):
    world.build(num_held_out=3, kinds=("qa",))
    with pytest.raises(BenchBuildError, match="21 fewer than three other answers of its kind"):
        new_bench(world.lake, "b1", BenchPlan(min_clips=3))


def test_a_bench_of_one_kind_has_an_empty_file_of_the_other(world, tmp_path):
    world.build(kinds=("detailed_caption",))
    write_bench(new_bench(world.lake, "b1", BenchPlan()), Lake(tmp_path / "out"))
    assert json.loads((tmp_path / "out/bench-q.json").read_text()) == []
    assert len(json.loads((tmp_path / "out/bench-d.json").read_text())) == 12


@pytest.mark.parametrize(
    ("found", "why"),
    [('[\n{"id": 0, "checked": true},\n{"id": 1}\n]', "1 items checked by hand"), ('{"a": 1}', "no bench file"),
     ("not JSON", "no bench file")],
)  # fmt: skip
def test_what_people_wrote_is_never_written_over(world, tmp_path, found, why):
    world.build()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/bench-q.json").write_text(found)
    with pytest.raises(BenchBuildError, match=why):
        write_bench(new_bench(world.lake, "b1", BenchPlan()), Lake(tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["bench-q.json"]
    assert (tmp_path / "out/bench-q.json").read_text() == found


def test_an_unchecked_bench_is_replaced(world, tmp_path):
    world.build()
    out = Lake(tmp_path / "out")
    write_bench(new_bench(world.lake, "b1", BenchPlan()), out)
    write_bench(new_bench(world.lake, "b1", BenchPlan(max_questions=5)), out)
    assert len(question_items(tmp_path / "out/bench-q.json")) == 5
