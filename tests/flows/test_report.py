"""The report shows what a build made and dropped, in one file that needs nothing else."""

import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from flows.counts import BuildCounts, count_build
from flows.report import ReportInputs, choose, marked_turns, pick_drops, render_report
from flows.report_pictures import Still, evenly, outline, plain_strip, read_pictures, sample_strip, shrink, track_strip
from infra.video import VideoError
from schemas.clip import Clip
from schemas.label import AgentLabel
from schemas.mask import decode, encode
from schemas.mention import Mention, SaidAttributes
from schemas.quarantine import QuarantineEntry
from schemas.sample import Provenance, Sample, SampleObject, Turn
from schemas.track import ObjectMasks, Track
from schemas.verdict import Check, Verdict

HEIGHT, WIDTH, NUM_FRAMES = 48, 64, 20


class Painted:
    """Frames whose grey level is their index; clips named in `broken` cannot be read."""

    def __init__(self, broken: Sequence[str] = ()) -> None:
        self.broken = broken
        self.reads: list[tuple[str, tuple[int, ...]]] = []

    def read(self, clip: Clip, frame_idx: Sequence[int], long_side_px: int) -> np.ndarray:
        self.reads.append((clip.clip_id, tuple(frame_idx)))
        if clip.clip_id in self.broken:
            raise VideoError("unreadable_video", "broken")
        return np.stack([np.full((HEIGHT, WIDTH, 3), 10 * (idx % 20), np.uint8) for idx in frame_idx])


def a_mask(x: int) -> str:
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[10:30, x : x + 15] = True
    return encode(mask)


def a_clip(clip_id: str = "c1", caption: str = "A red car & a <b>dog</b>.") -> Clip:
    return Clip(
        clip_id=clip_id, source_id="r1", video="v.mp4", video_sha256="0" * 64, license="CC0-1.0", start_s=4.0,
        end_s=6.0, start_frame=40, end_frame=40 + NUM_FRAMES, fps=10, height_px=HEIGHT, width_px=WIDTH, caption=caption,
    )  # fmt: skip


def a_track(track_id: str = "t1", clip_id: str = "c1") -> Track:
    frames = range(40, 60)
    rle = tuple(None if i >= 55 else a_mask(i - 40) for i in frames)
    masks = ObjectMasks(
        detector_class="car", frame_idx=tuple(frames), frame_time_s=tuple(i / 10 for i in frames), rle=rle,
        height_px=HEIGHT, width_px=WIDTH, score=0.9,
    )  # fmt: skip
    return Track(track_id=track_id, clip_id=clip_id, mention_id="m1", noun="car", masks=masks)


def an_object(frames: Sequence[int], track_id: str = "t1", noun: str = "car") -> SampleObject:
    times = tuple(i / 10 for i in frames)
    rle = tuple(a_mask(i - 40) for i in frames)
    return SampleObject(object_id=track_id, noun=noun, frame_idx=tuple(frames), frame_time_s=times, rle=rle)


def a_sample(
    sample_id: str = "s1",
    kind: str = "qa",
    qa_type: str = "basic",
    turns: Sequence[str] = ("<video>\nWhat is <region>?", "A <car>."),
    objects: Sequence[SampleObject] = (),
    **changes: object,
) -> Sample:
    speakers = ("human", "gpt") * len(turns)
    rest: dict[str, object] = {
        "split": "train", "clip_id": "c1", "source_id": "r1", "video": "v.mp4", "video_sha256": "0" * 64,
        "license": "CC0-1.0", "start_s": 4.0, "end_s": 6.0, "visible_until_s": 6.0, "fps": 10, "height": HEIGHT,
        "width": WIDTH, "conversations": tuple(Turn(speaker=s, value=t) for s, t in zip(speakers, turns, strict=False)),
        "objects": tuple(objects) or (an_object(range(40, 50)),),
        "provenance": Provenance(
            engines=("a=b",), weights=(), prompt_hashes=(), revisions=("a=1",), verdict="kept", wording="template"
        ),
    }  # fmt: skip
    return Sample.model_validate({"sample_id": sample_id, "kind": kind, "qa_type": qa_type} | rest | changes)


def a_drop(
    subject_id: str, reason: str = "not_found", clip_id: str = "c1", stage: str = "segmenter"
) -> QuarantineEntry:
    return QuarantineEntry(
        subject_id=subject_id, source_id="r1", clip_id=clip_id, noun="dog", stage=stage, reason=reason,
        evidence="best score 0.12 <needed 0.3>",
    )  # fmt: skip


def report_inputs(frames: Painted | None = None, **changes: object) -> ReportInputs:
    label = AgentLabel(
        agent="refiner", engine="template", weights=(), config_json='{"a":1}', prompt_hash="", revision=1
    )
    mention = Mention(
        mention_id="m1", clip_id="c1", noun="car", phrase="A red car", start_char=6, end_char=9, role="subject",
        number="singular", detector_class="car", class_similarity=1, said=SaidAttributes(count=1),
    )  # fmt: skip
    check = Check(name="colour", outcome="disagrees", score=0.2, detail="blue 0.9")
    verdict = Verdict(track_id="t1", keep=False, score=0.2, reason="colour_mismatch", checks=(check,))
    made = ReportInputs(
        build_id="b1", profile_name="embedded", created_at="2026-01-02", labels=(label,), counts=BuildCounts(),
        clips=(a_clip(),), mentions=(mention,), tracks=(a_track(),), verdicts=(verdict,), samples=(a_sample(),),
        quarantine=(a_drop("t1", "colour_mismatch", stage="reviewer"), a_drop("m2"), a_drop("r9", "no_caption", "")),
        frames=frames or Painted(),
    )  # fmt: skip
    made = replace(made, **changes)
    counts = count_build(3, made.clips, made.mentions, made.tracks, (), made.verdicts, made.samples, made.quarantine)
    return replace(made, counts=counts)


class Tags(HTMLParser):
    """Every start tag with its attributes, and whether all that open are closed in order."""

    VOID = frozenset({"meta", "br", "path"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_a_report_is_well_formed_and_needs_no_network() -> None:
    page = render_report(report_inputs())
    found = Tags(page)
    assert found.open == []
    assert not {"link", "iframe", "img"} & {tag for tag, _ in found.tags}
    assert not any(name in {"src", "srcset"} for _, attributes in found.tags for name in attributes)
    assert re.findall(r"https?://|url\((?!data:)", page) == []


def test_text_of_sources_and_models_is_escaped() -> None:
    page = render_report(report_inputs())
    assert "A red <mark>car</mark> &amp; a &lt;b&gt;dog&lt;/b&gt;." in page
    assert "A &lt;car&gt;." in page
    assert "0.12 &lt;needed 0.3&gt;" in page
    assert "<b>dog</b>" not in page


def test_a_frame_is_embedded_once_however_many_cards_show_it() -> None:
    one = render_report(report_inputs())
    many = render_report(report_inputs(samples=tuple(a_sample(f"s{i}") for i in range(6))))
    assert many.count('data-sort="sample"') == 6
    assert many.count("url(data:") == one.count("url(data:")


def test_a_clip_is_read_once() -> None:
    frames = Painted()
    render_report(report_inputs(frames, samples=tuple(a_sample(f"s{i}") for i in range(6))))
    assert [clip_id for clip_id, _ in frames.reads] == ["c1"]
    assert list(frames.reads[0][1]) == sorted(set(frames.reads[0][1]))


def test_a_broken_video_costs_its_pictures_only() -> None:
    page = render_report(report_inputs(Painted(broken=["c1"])))
    assert "url(data:" not in page
    assert page.count('data-sort="sample"') == 1
    assert "the video could not be read" in page


def test_drops_show_reason_evidence_and_verdict() -> None:
    page = render_report(report_inputs())
    assert page.count('data-sort="drop"') == 3
    assert all(f">{reason}</span>" in page for reason in ("colour mismatch", "not found", "no caption"))
    assert "blue 0.9" in page
    assert "there is no clip to show" in page


def test_an_empty_build_has_a_report() -> None:
    page = render_report(report_inputs(clips=(), samples=(), tracks=(), verdicts=(), mentions=(), quarantine=()))
    assert "holds no sample" in page
    assert "Nothing was dropped" in page


def test_the_same_inputs_give_the_same_page_in_any_order() -> None:
    samples = tuple(a_sample(f"s{i}", qa_type=("basic", "reasoning")[i % 2]) for i in range(5))
    assert render_report(report_inputs(samples=samples)) == render_report(report_inputs(samples=samples[::-1]))


def test_a_report_keeps_its_size_limit() -> None:
    clips = tuple(a_clip(f"c{i}") for i in range(60))
    samples = tuple(a_sample(f"s{i}", clip_id=f"c{i}") for i in range(60))
    inputs = report_inputs(clips=clips, samples=samples, quarantine=())
    whole = render_report(inputs)
    limit = len(whole) * 3 // 4
    smaller = render_report(inputs, max_bytes=limit)
    assert whole.count('data-sort="sample"') == 60
    assert len(smaller.encode()) <= limit
    assert smaller.count('data-sort="sample"') == 40


def test_choice_is_even_over_strata_and_a_smaller_one_is_part_of_it() -> None:
    items = [("common", i) for i in range(500)] + [("rare", i) for i in range(3)] + [("some", i) for i in range(40)]
    chosen = choose(items, lambda item: item[0], str, 60)
    kinds = [kind for kind, _ in chosen]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"rare": 3, "some": 28, "common": 29}
    assert choose(items[::-1], lambda item: item[0], str, 20) == chosen[:20]


def test_picking_part_by_part_is_picking_at_once() -> None:
    reasons = ("not_found", "plural", "scenery")
    drops = [a_drop(f"m{i}", reasons[(i % 7 > 0) + (i % 70 == 5)]) for i in range(900)]
    picked: list[QuarantineEntry] = []
    for start in range(0, len(drops), 130):
        picked = pick_drops([*picked, *drops[start : start + 130]])
    assert picked == pick_drops(drops)
    assert len(picked) == 200


def test_regions_and_objects_become_chips_of_their_object() -> None:
    sample = a_sample(
        qa_type="reasoning",
        turns=("There are <object0><region>, <object1><region>.\nWhich?", "<object1>, not <object7>."),
        objects=(an_object([40]), an_object([40], "t2", "<dog>")),
    )
    (_, question), (_, answer) = marked_turns(sample)
    assert 'class="chip o0">0 car<' in question
    assert 'class="chip o1">1 &lt;dog&gt;<' in question
    assert answer == '<span class="chip o1">1 &lt;dog&gt;</span>, not &lt;object7&gt;.'


def test_bare_regions_take_the_objects_in_order() -> None:
    sample = a_sample(
        turns=("Is <region> left of <region>?", "Yes."), objects=(an_object([40]), an_object([40], "t2", "dog"))
    )
    (_, question), _ = marked_turns(sample)
    assert re.findall(r"chip o(\d)", question) == ["0", "1"]


def test_a_row_with_one_mask_is_filled_up_from_its_track() -> None:
    sample = a_sample(kind="short_caption", qa_type="none", objects=[an_object([47])])
    strip = sample_strip(sample, a_clip(), {"t1": a_track()})
    assert [still.role for still in strip.stills].count("main") == 1
    assert len(strip.stills) == 5
    assert [still.frame_idx for still in strip.stills] == sorted({still.frame_idx for still in strip.stills})


def test_a_future_question_shows_what_came_after() -> None:
    sample = a_sample(qa_type="future", visible_until_s=5.0)
    strip = sample_strip(sample, a_clip(), {"t1": a_track()})
    assert [still.role for still in strip.stills] == ["main"] * 3 + ["after"] * 2
    assert all((still.time_s >= 5.0) == (still.role == "after") for still in strip.stills)


def test_a_sample_whose_track_is_unknown_shows_its_own_masks() -> None:
    strip = sample_strip(a_sample(objects=[an_object([42, 44])]), a_clip(), {})
    assert strip.stills == (Still(42, 4.2, "main", (a_mask(2),)), Still(44, 4.4, "main", (a_mask(4),)))


def test_strips_of_drops_lie_inside_the_clip() -> None:
    assert all(still.rle[0] for still in track_strip(a_track(), a_clip()).stills)
    plain = plain_strip(a_clip())
    assert [still.frame_idx for still in plain.stills] == [42, 46, 50, 54, 58]
    assert plain.stills[0].time_s == pytest.approx(4.2)


@pytest.mark.parametrize(
    ("count", "wanted"), [(0, []), (1, [5]), (2, [0, 9]), (4, [0, 3, 6, 9]), (20, list(range(10)))]
)
def test_evenly_spreads(count: int, wanted: list[int]) -> None:
    assert evenly(list(range(10)), count) == wanted


def test_an_outline_encloses_the_mask_with_its_hole() -> None:
    mask = np.zeros((90, 120), np.uint8)
    cv2.circle(mask, (60, 45), 35, 1, -1)
    cv2.circle(mask, (60, 45), 12, 0, -1)
    mask[2:8, 3:12] = 1
    path = outline(encode(mask.astype(bool)), 90, 120)
    rings = [np.array(re.findall(r"(\d+) (\d+)", ring), np.int32) for ring in path.split("M") if ring]
    filled = np.zeros_like(mask)
    cv2.fillPoly(filled, rings, 1)
    wanted = decode(encode(mask.astype(bool)), 90, 120)
    assert len(rings) == 3
    assert (filled.astype(bool) & wanted).sum() / (filled.astype(bool) | wanted).sum() > 0.95


def test_pictures_shrink() -> None:
    first = read_pictures([plain_strip(a_clip())], Painted())
    smaller = shrink(first, 16, 50)
    assert smaller.keys() == first.keys()
    image = cv2.imdecode(np.frombuffer(smaller["c1", 42], np.uint8), cv2.IMREAD_COLOR)
    assert image.shape == (12, 16, 3)
    assert abs(int(image.mean()) - 20) < 4
