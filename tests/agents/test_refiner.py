"""The refiner on hand-made records: kinds, frames, provenance, escapes, and the fate of every kept track."""

import numpy as np
import pytest
from pydantic import ValidationError

from agents.refiner import REVISION, Refiner, RefinerConfig, mid_segment
from schemas.caption import AppearanceFacts, CaptionSet, ColourShare, MotionFacts, ObjectCaption
from schemas.clip import Clip
from schemas.jobs import RefinerJob
from schemas.label import AgentLabel
from schemas.mask import area_px, encode
from schemas.mention import Mention, MentionSet, SaidAttributes
from schemas.track import ObjectMasks, Track, TrackSet
from schemas.verdict import Check, Verdict, VerdictSet

HEIGHT, WIDTH, NUM = 24, 32, 80
CLIP = Clip(
    clip_id="clip",
    source_id="source",
    video="a.mp4",
    video_sha256="ab" * 32,
    license="CC0-1.0",
    start_s=2.0,
    end_s=10.0,
    start_frame=20,
    end_frame=100,
    fps=10.0,
    height_px=HEIGHT,
    width_px=WIDTH,
    caption="A red car passes <region> and a man.",
)
LABELS = (
    AgentLabel(
        agent="segmenter",
        engine="flow-tracker",
        weights=("ssd@0123", "sam@4567"),
        config_json="{}",
        prompt_hash="",
        revision=3,
    ),
)


def motion(direction="right", start="left", end="right"):
    return MotionFacts(
        start_s=2.0,
        end_s=10.0,
        start_places=(start,),
        end_places=(end,),
        direction=direction,
        speed="still" if direction == "none" else "slow",
        displacement_x_diag=0.3,
        displacement_y_diag=0.0,
        speed_diag_per_s=0.0 if direction == "none" else 0.05,
        growth=1.0,
    )


def masks(hidden=()):
    """A square that is largest in frame 60; frames 20 to 99, out of sight at the given positions."""
    rles = []
    for i in range(NUM):
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[: 20 - abs(i - 40) // 4, :10] = True
        rles.append(None if i in hidden else encode(mask))
    return ObjectMasks(
        detector_class="car",
        frame_idx=tuple(range(20, 20 + NUM)),
        frame_time_s=tuple(2.0 + i / 10 for i in range(NUM)),
        rle=tuple(rles),
        height_px=HEIGHT,
        width_px=WIDTH,
        score=0.9,
    )


def job(*things):
    """A job from (noun, role, number, keep, direction) per object; direction None leaves it without caption."""
    mentions, tracks, captions, verdicts = [], [], [], []
    for i, (noun, role, number, keep, direction) in enumerate(things):
        mentions.append(
            Mention(
                mention_id=f"m{i}",
                clip_id="clip",
                noun=noun,
                phrase=noun,
                start_char=0,
                end_char=1,
                role=role,
                number=number,
                detector_class="car",
                class_similarity=1.0,
                said=SaidAttributes(count=1),
            )
        )
        tracks.append(Track(track_id=f"t{i}", clip_id="clip", mention_id=f"m{i}", noun=noun, masks=masks()))
        check = Check(name="colour", outcome="agrees", score=1.0, detail="red")
        reason = None if keep else "colour_mismatch"
        verdicts.append(Verdict(track_id=f"t{i}", keep=keep, score=0.875, reason=reason, checks=(check,)))
        if direction is None:
            continue
        facts = motion(direction)
        captions.append(
            ObjectCaption(
                track_id=f"t{i}",
                mention_id=f"m{i}",
                noun=noun,
                visible_from_s=2.0,
                visible_to_s=9.9,
                visible_until_s=6.8,
                appearance_facts=AppearanceFacts(
                    detector_class="car",
                    colours=(ColourShare(colour="red", share=0.8),),
                    size="medium",
                    area_share=0.1 / (i + 1) ** 2,
                ),
                motion_facts=facts,
                seen_facts=facts,
                rest_facts=facts,
                contacts=(),
                appearance=f"The {noun} is mostly red.",
                motion=f"The {noun} moves slowly to the right, from the left to the right of the frame.",
                moving=facts.moves,
            )
        )
    return RefinerJob(
        clip=CLIP,
        mentions=MentionSet(clip_id="clip", mentions=tuple(mentions), rejected=()),
        tracks=TrackSet(clip_id="clip", tracks=tuple(tracks), rejected=()),
        captions=CaptionSet(clip_id="clip", captions=tuple(captions), rejected=()),
        verdicts=VerdictSet(clip_id="clip", verdicts=tuple(verdicts), rejected=()),
    )


CAR = ("car", "subject", "singular", True, "right")
MERGED = "The car is mostly red. It moves slowly to the right, from the left to the right of the frame."


class Scripted:
    """A chat model that says what it is told."""

    name = "scripted"

    def __init__(self, answer):
        self.answer = answer
        self.asked = []

    def weights(self):
        return ("scripted@00",)

    def setup(self):
        self.asked.clear()

    def reply(self, system, user, max_tokens):
        self.asked.append(user)
        return self.answer


def refine(case, chat=None, **config):
    refiner = Refiner(RefinerConfig(**config), chat, LABELS)
    refiner.setup()
    return refiner.process([case])[0]


def of_kind(result, kind, qa_type="none"):
    return [sample for sample in result.samples if (sample.kind, sample.qa_type) == (kind, qa_type)]


def test_a_short_caption_reuses_the_clips_caption_on_its_best_middle_frame():
    (sample,) = of_kind(refine(job(CAR)), "short_caption")
    human, gpt = sample.conversations
    assert (human.speaker, gpt.speaker) == ("human", "gpt")
    assert human.value.startswith("<video>\n")
    assert human.value.count("<region>") == 1
    assert gpt.value == "A red car passes ‹region› and a man."
    assert sample.provenance.wording == "source_caption"
    (item,) = sample.objects
    assert item.frame_idx in ((59,), (60,))
    assert area_px(item.rle[0]) == max(area_px(counts) for counts in masks().rle)


def test_the_largest_mask_at_an_end_is_not_taken_for_a_short_caption():
    case = job(CAR)
    track = case.tracks.tracks[0]
    big = encode(np.ones((HEIGHT, WIDTH), bool))
    ends = track.masks.model_copy(update={"rle": (big, *track.masks.rle[1:-1], big)})
    case = case.model_copy(
        update={"tracks": case.tracks.model_copy(update={"tracks": (track.model_copy(update={"masks": ends}),)})}
    )
    (sample,) = of_kind(refine(case), "short_caption")
    assert sample.objects[0].frame_idx in ((59,), (60,))


@pytest.mark.parametrize(("role", "number"), [("other", "singular"), ("subject", "plural")])
def test_short_captions_are_for_singular_subjects(role, number):
    assert of_kind(refine(job(("car", role, number, True, "right"))), "short_caption") == []


def test_a_detailed_caption_merges_both_texts_over_32_frames():
    (sample,) = of_kind(refine(job(CAR)), "detailed_caption")
    assert sample.conversations[1].value == MERGED
    assert sample.provenance.wording == "template"
    assert len(sample.objects[0].frame_idx) == 32
    assert sample.visible_until_s == CLIP.end_s


def test_still_subjects_have_no_detailed_caption_but_other_still_objects_do():
    result = refine(job(("man", "subject", "singular", True, "none"), ("bench", "other", "singular", True, "none")))
    assert [sample.objects[0].noun for sample in of_kind(result, "detailed_caption")] == ["bench"]
    assert result.rejected == ()


def test_basic_questions_ask_for_the_chosen_facts_alone():
    asked = of_kind(refine(job(CAR), basic_per_object=9, basic_topics=("name", "direction")), "qa", "basic")
    assert {sample.conversations[1].value for sample in asked} == {"It is a car.", "The car moves to the right."}
    with pytest.raises(ValidationError, match="'start_place'"):
        RefinerConfig(basic_topics=("place",))


def test_a_future_question_shows_only_the_first_part():
    (sample,) = of_kind(refine(job(CAR)), "qa", "future")
    assert sample.visible_until_s == 6.8
    (item,) = sample.objects
    assert max(item.frame_time_s) < 6.8
    assert len(item.frame_idx) == 16


def test_questions_cover_single_objects_pairs_and_groups():
    result = refine(job(CAR, ("dog", "other", "singular", True, "left"), ("bus", "other", "singular", True, "up")))
    sizes = sorted(len(sample.objects) for sample in of_kind(result, "qa", "reasoning"))
    assert sizes == [1, 1, 1, 2, 2, 2, 3]
    assert len(of_kind(result, "qa", "basic")) == 6
    assert all(len(sample.conversations) == 2 for sample in result.samples)
    assert len({sample.sample_id for sample in result.samples}) == len(result.samples)


def test_pairs_are_capped():
    things = [(f"car{i}", "other", "singular", True, "right") for i in range(6)]
    pairs = [s for s in refine(job(*things), max_pairs=2).samples if len(s.objects) == 2]
    assert len({tuple(item.object_id for item in sample.objects) for sample in pairs}) == 2


@pytest.mark.parametrize("shift_px", [0, 5])
def test_objects_are_said_to_stay_apart_only_where_their_masks_never_touch(shift_px):
    things = [(f"car{i}", "other", "singular", True, "right") for i in range(6)]
    case = job(*things)
    tracks = []
    for i, track in enumerate(case.tracks.tracks):
        spot = np.zeros((HEIGHT, WIDTH), bool)
        spot[:2, shift_px * i : shift_px * i + 2] = True
        tracks.append(track.model_copy(update={"masks": track.masks.model_copy(update={"rle": (encode(spot),) * NUM})}))
    case = case.model_copy(update={"tracks": case.tracks.model_copy(update={"tracks": tuple(tracks)})})
    told = [s.conversations[1].value for s in refine(case, max_pairs=15, reasoning_per_pair=9).samples]
    assert ("No, they stay apart in the frame." in told) == bool(shift_px)


def test_dropped_tracks_are_in_no_sample_unless_short_captions_follow_the_paper():
    case = job(CAR, ("man", "subject", "singular", False, "right"), ("cat", "other", "singular", False, "right"))
    assert {item.noun for sample in refine(case).samples for item in sample.objects} == {"car"}
    as_paper = refine(case, paper_short=True)
    assert [sample.objects[0].noun for sample in of_kind(as_paper, "short_caption")] == ["car", "man"]
    assert [sample.provenance.verdict for sample in of_kind(as_paper, "short_caption")] == [
        "kept 0.875",
        "dropped 0.875",
    ]
    assert {item.noun for sample in of_kind(as_paper, "qa", "basic") for item in sample.objects} == {"car"}


def test_a_kept_track_without_sample_is_rejected_with_the_reason():
    result = refine(job(("bench", "other", "singular", True, None)))
    assert result.samples == ()
    (entry,) = result.rejected
    assert (entry.subject_id, entry.stage, entry.reason) == ("t0", "refiner", "no_sample")
    assert "no caption" in entry.evidence


def test_a_rewrite_that_keeps_all_facts_is_used_and_one_that_does_not_is_not():
    good = "The car is mostly red and moves slowly to the right, from the left to the right of the frame."
    chat = Scripted(f"{good}\n\nNotes: more")
    (sample,) = of_kind(refine(job(CAR), chat), "detailed_caption")
    assert (sample.conversations[1].value, sample.provenance.wording) == (good, "scripted")
    assert len(chat.asked) == 1
    (sample,) = of_kind(refine(job(CAR), Scripted(good.replace("red", "blue"))), "detailed_caption")
    assert (sample.conversations[1].value, sample.provenance.wording) == (MERGED, "template")


def test_provenance_names_every_agent_with_the_refiner_last():
    chat = Scripted("no")
    sample = refine(job(CAR), chat).samples[0]
    made = sample.provenance
    assert made.engines == ("segmenter=flow-tracker", "refiner=scripted")
    assert made.weights == ("segmenter=ssd@0123", "segmenter=sam@4567", "refiner=scripted@00")
    assert made.revisions == ("segmenter=3", f"refiner={REVISION}")
    assert len(made.prompt_hashes) == 1
    assert made.prompt_hashes[0].startswith("refiner=")


def test_provenance_says_where_the_source_gave_the_masks():
    given = job(CAR)
    given = given.model_copy(update={"clip": given.clip.model_copy(update={"given_sha256": "a" * 64})})
    made = refine(given).samples[0].provenance
    assert made.engines == ("segmenter=given-by-source", "refiner=template")
    assert made.weights == ()
    assert made.revisions == ("segmenter=3", f"refiner={REVISION}")


def test_the_prompt_enters_the_label_only_where_it_is_used():
    assert Refiner(RefinerConfig(), None, ()).label().prompt_hash == ""
    label = Refiner(RefinerConfig(), Scripted("no"), ()).label()
    assert len(label.prompt_hash) == 64
    assert label.engine == "scripted"


def test_the_same_job_gives_the_same_samples():
    assert refine(job(CAR)) == refine(job(CAR))


def test_jobs_of_mixed_clips_are_refused():
    case = job(CAR)
    mixed = case.model_copy(update={"captions": case.captions.model_copy(update={"clip_id": "another"})})
    with pytest.raises(ValueError, match="one clip"):
        refine(mixed)


def test_frames_out_of_sight_are_not_sampled():
    case = job(CAR)
    track = case.tracks.tracks[0]
    seen_late = track.model_copy(update={"masks": masks(hidden=range(70))})
    case = case.model_copy(update={"tracks": case.tracks.model_copy(update={"tracks": (seen_late,)})})
    (sample,) = of_kind(refine(case, future_per_object=0), "detailed_caption")
    assert sample.objects[0].frame_idx == tuple(range(90, 100))
    assert None not in sample.objects[0].rle


def test_mid_segment_follows_the_official_formula():
    def frame_sample(duration, num_frames):
        seg_size = float(duration - 1) / num_frames
        ids = []
        for i in range(num_frames):
            start = int(np.round(seg_size * i))
            end = int(np.round(seg_size * (i + 1)))
            ids.append((start + end) // 2)
        return ids

    for duration in (33, 64, 100, 371):
        assert mid_segment(duration, 32) == frame_sample(duration, 32)
        assert len(set(mid_segment(duration, 32))) == 32
    assert mid_segment(5, 16) == [0, 1, 2, 3, 4]
