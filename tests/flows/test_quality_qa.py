"""Whether questions need the video, and whether answers are true, on synthetic clips: `make quality`.

The checker below knows nothing of how answers are made: it reads each claim off the English and holds it against the
truth's masks, directions and tints, frame by frame.
"""

import json
import re
from collections import Counter, defaultdict

import cv2
import numpy as np
import pytest

from benchmark.blind import blind_figures
from flows.profile_config import load_profile
from flows.wiring import UNKNOWN, Site, make_agent
from infra.sources import ClipConfig, SourceRow, clips_of
from infra.synthetic import write_clips
from infra.truth import read_truth
from schemas.jobs import AnnotatorJob, RefinerJob, SegmenterJob
from schemas.mask import decode
from schemas.verdict import Check, Verdict, VerdictSet
from schemas.words import COLOURS

SEEDS = {"easy": 3101, "crowd": 3102}
NUM_CLIPS = 80
DIRECTIONS = {
    "to the left": "left", "to the right": "right", "up": "up", "down": "down",
    "toward the camera": "toward", "away from the camera": "away",
}  # fmt: skip
WAY = "(" + "|".join(DIRECTIONS) + ")"
PLACE = r"(?:the )?((?:top |bottom )?(?:left|right)|top|bottom|middle)"
SPEEDS = {"slowly": (0, 0.08), "at moderate speed": (0.08, 0.25), "quickly": (0.25, 9)}


class Seen:
    """One object of the truth, frame by frame; lengths in frame diagonals."""

    def __init__(self, truth, start_s=0.0, end_s=1e9):
        self.truth = truth
        masks = truth.masks
        self.diag_px = float(np.hypot(masks.height_px, masks.width_px))
        self.size_px = np.array([masks.width_px, masks.height_px])
        self.step_s = masks.frame_time_s[1] - masks.frame_time_s[0]
        self.masks = {}
        for time_s, counts in zip(masks.frame_time_s, masks.rle, strict=True):
            if counts and start_s <= time_s < end_s:
                self.masks[time_s] = decode(counts, masks.height_px, masks.width_px)
        self.times_s = sorted(self.masks)
        self.boxes = np.array([self._box(self.masks[time_s]) for time_s in self.times_s])
        self.areas = np.array([self.masks[time_s].sum() for time_s in self.times_s], float)
        self.centres = (self.boxes[:, :2] + self.boxes[:, 2:]) / 2

    def _box(self, mask):
        ys, xs = np.nonzero(mask)
        return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]

    def area_share(self):
        return float(np.median(self.areas)) / float(np.prod(self.size_px))

    def travel(self):
        """(dx, dy) of the edge that moved least at each axis where the border or another object cuts, else the same."""
        moved = self.boxes[-1] - self.boxes[0]
        low, high = moved[:2], moved[2:]
        cut = (self.boxes[[0, -1], :2] <= 3).any(0) | (self.boxes[[0, -1], 2:] >= self.size_px - 3).any(0)
        return np.where(cut, np.where(np.abs(low) > np.abs(high), low, high), (low + high) / 2) / self.diag_px

    def swelling(self):
        return float(np.sqrt(self.areas[-3:].mean()) - np.sqrt(self.areas[:3].mean())) / self.diag_px

    def speed(self):
        length = float(np.hypot(*self.travel()))
        if self.truth.direction in ("toward", "away"):
            length = max(length, abs(self.swelling()))
        return length / (self.times_s[-1] - self.times_s[0])

    def at(self, words, which):
        """Whether the centre is in the named third, within a twentieth, in the first or last few frames."""
        num = max(1, len(self.centres) // 8)
        part = self.centres[:num] if which == "first" else self.centres[-num:]
        x, y = np.median(part, axis=0) / self.size_px
        near, far = 1 / 3, 2 / 3
        bounds = {"left": (x, 0, near), "right": (x, far, 1), "top": (y, 0, near), "bottom": (y, far, 1)}
        if words == "middle":
            return all(near - 0.05 <= value <= far + 0.05 for value in (x, y))
        named = words.split()
        told = all(bounds[word][1] - 0.05 <= bounds[word][0] <= bounds[word][2] + 0.05 for word in named)
        free_x = {"left", "right"} & set(named) or near - 0.05 <= x <= far + 0.05
        free_y = {"top", "bottom"} & set(named) or near - 0.05 <= y <= far + 0.05
        return told and bool(free_x) and bool(free_y)

    def goes(self, direction):
        return self.truth.direction == direction

    def touches(self, other, time_s):
        gap_px = max(2, round(0.008 * self.diag_px))
        disc = np.ones((2 * gap_px + 1, 2 * gap_px + 1), np.uint8)
        near = min(self.masks, key=lambda t: abs(t - time_s)), min(other.masks, key=lambda t: abs(t - time_s))
        if near[0] != near[1] or abs(near[0] - time_s) > self.step_s:
            return False
        return bool((cv2.dilate(self.masks[near[0]].astype(np.uint8), disc) & other.masks[near[0]]).any())


def in_band(value, low, high, slack=0.15):
    return low * (1 - slack) <= value <= high * (1 + slack)


def motion_claims(text, seen):
    """(topic, true) of everything that a piece of text says of how one object moves."""
    for match in re.finditer(rf"[Mm]oves?(?: (slowly|quickly))? {WAY}(?: (at moderate speed))?", text):
        yield "direction", seen.goes(DIRECTIONS[match[2]])
        if match[1] or match[3]:
            yield "speed", in_band(seen.speed(), *SPEEDS[match[1] or match[3]])
    for match in re.finditer(r"moves (slowly|quickly|at moderate speed)\.", text):
        yield "speed", in_band(seen.speed(), *SPEEDS[match[1]])
    if re.search(r"hardly moves|goes nowhere", text):
        yield "stillness", seen.goes("none")
    for match in re.finditer(rf"from {PLACE} to {PLACE} of the frame", text):
        yield "place", seen.at(match[1], "first")
        yield "place", seen.at(match[2], "last")
    for pattern, which in (
        (rf"stays (?:at|on|in) {PLACE} of", "first"), (rf"staying (?:at|on|in) {PLACE} of", "last"),
        (rf"[Aa]t first, [^,;]* is (?:at|on|in) {PLACE}", "first"), (rf"last seen (?:at|on|in) {PLACE} of", "last"),
        (rf"starts (?:at|on|in) {PLACE} of", "first"), (rf"ends up (?:at|on|in) {PLACE}\b", "last"),
    ):  # fmt: skip
        for match in re.finditer(pattern, text):
            yield "place", seen.at(match[1], which)


def claims_of_one(text, seen, others, clip):
    """(topic, true) of everything that an answer or a caption says of one object."""
    yield from motion_claims(text, seen)
    if match := re.fullmatch(r"It is an? (.+)\.", text):
        yield "name", match[1] == seen.truth.noun
    if (
        (match := re.search(r"(?:mostly|is|are) ((?:\w+, )*\w+(?: and \w+)?|\w+, with some [\w, ]+)\.", text))
        and (named := set(re.findall(r"\w+", match[1])) & set(COLOURS))
        and seen.truth.colour
    ):
        yield "colour", seen.truth.colour in named
    if match := re.search(r"looks (small|medium-sized|large) in the frame", text):
        low, high = {"small": (0, 0.03), "medium-sized": (0.03, 0.15), "large": (0.15, 1)}[match[1]]
        yield "size", in_band(seen.area_share(), low, high, 0.02)
    if match := re.search(r"filling about ([\d.]+) % of it", text):
        yield "size", abs(float(match[1]) / 100 - seen.area_share()) <= 0.1 * seen.area_share() + 0.0006
    if "in view for the whole clip" in text:
        yield "view", seen.times_s[0] <= 0.25 and clip.end_s - seen.times_s[-1] <= 0.25 + seen.step_s
    if match := re.search(r"in view from ([\d.]+) s to ([\d.]+) s", text):
        yield "view", np.allclose([float(match[1]), float(match[2])], [seen.times_s[0], seen.times_s[-1]], atol=0.06)
    for match in re.finditer(r"the (?:other )?(\w+) from ([\d.]+) s to ([\d.]+) s", text):
        times = np.arange(float(match[2]), float(match[3]), seen.step_s)
        named = [other for other in others if other.truth.noun == match[1]]
        shares = [np.mean([seen.touches(other, time_s) for time_s in times]) for other in named if len(times)]
        yield "contact", max(shares, default=0) >= 0.75
    if match := re.search(r"seems to get (closer|farther).* about ([\d.]+) times", text):
        yield "depth", seen.goes("toward" if match[1] == "closer" else "away")
        third = len(seen.areas) // 3
        growth = np.median(seen.areas[-third:]) / np.median(seen.areas[:third])
        yield "depth", abs(growth - float(match[2])) <= 0.1 * growth + 0.06


def claims_of_future(text, before, rest):
    """(topic, true) of what comes after a moment, told from what comes before it."""
    for match in re.finditer(rf"end up (?:at|on|in) {PLACE} of", text):
        yield "future place", rest.at(match[1], "last")
    if "stop moving" in text:
        yield "future motion", float(np.hypot(*rest.travel())) < 0.055 and abs(rest.swelling()) < 0.055
    if match := re.search(
        rf"(keep moving|turn and move|start to move)(?: (slowly|quickly))? {WAY}(?: (at mod\w+ speed))?", text
    ):
        yield "future motion", rest.goes(DIRECTIONS[match[3]])
        if match[1] == "keep moving":
            yield "future motion", float(np.hypot(*before.travel())) > 0.045 or abs(before.swelling()) > 0.045
        if match[2] or match[4]:
            yield "future speed", in_band(rest.speed(), *SPEEDS[match[2] or match[4]], 0.2)


def claims_of_many(text, objects, clip):
    """(topic, true) of everything that an answer says of several objects."""
    best = int(re.match(r"<object(\d)>", text)[1]) if text.startswith("<object") else None
    others = [item for place, item in enumerate(objects) if place != best]
    for match in re.finditer(r"<object(\d)> ((?:hardly )?moves[^<]*)", text):
        yield from ((f"relation {topic}", true) for topic, true in motion_claims(match[2], objects[int(match[1])]))
    if "looks large" in text:
        yield "larger", all(objects[best].area_share() > other.area_share() for other in others)
    if re.search(r"is faste", text):
        speeds = [item.speed() if item.truth.direction != "none" else 0.0 for item in objects]
        yield "faster", speeds[best] == max(speeds)
    if "comes into view first" in text:
        yield "order", all(objects[best].times_s[0] < other.times_s[0] - 0.3 for other in others)
    if "goes out of view first" in text:
        yield "order", all(objects[best].times_s[-1] < other.times_s[-1] - 0.3 for other in others)
    if match := re.match(r"To the (left|right): ", text):
        x = [item.centres[0][0] for item in objects]
        yield "side", (x[0] < x[1]) == (match[1] == "left")
        for match in re.finditer(rf"<object(\d)> is (?:at|on|in) {PLACE}", text):
            yield "place", objects[int(match[1])].at(match[2], "first")
    if "stay apart" in text or "they touch" in text:
        touching = [objects[0].touches(objects[1], time_s) for time_s in objects[0].times_s]
        yield "touch", any(touching) == text.startswith("Yes")
    if match := re.match(rf"Yes, both move {WAY}", text):
        yield "same heading", all(item.goes(DIRECTIONS[match[1]]) for item in objects)
    if text.startswith("No: "):
        yield "same heading", objects[0].truth.direction != objects[1].truth.direction


def claims_of(sample, truths, clip):
    """(topic, true) of every claim in a sample's answer; `truths` are those of its objects, then of all others."""
    answer = sample.conversations[1].value
    num = len(sample.objects)
    if sample.kind == "short_caption":
        return
    if sample.qa_type == "future":
        before, rest = Seen(truths[0], end_s=sample.visible_until_s), Seen(truths[0], start_s=sample.visible_until_s)
        yield from claims_of_future(answer, before, rest)
    elif num > 1:
        yield from claims_of_many(answer, [Seen(truth) for truth in truths[:num]], clip)
    else:
        yield from claims_of_one(answer, Seen(truths[0]), [Seen(truth) for truth in truths[1:]], clip)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """(samples, clip, truth by track id) of every clip: exact tracks, measured facts, templates, nothing dropped."""
    folder = tmp_path_factory.mktemp("qa")
    profile = load_profile("painted")
    site = Site(videos_root=str(folder), frames_dir=str(folder / "frames"), identity=UNKNOWN)
    agents = {role: make_agent(role, profile, site) for role in ("analyzer", "segmenter", "annotator", "refiner")}
    for agent in agents.values():
        agent.setup()
    found = []
    for difficulty, seed in SEEDS.items():
        for row in write_clips(folder / difficulty, NUM_CLIPS, seed, difficulty):
            source_row = SourceRow(**{("source_id" if key == "id" else key): value for key, value in row.items()})
            clip = clips_of(source_row, folder, ClipConfig()).clips[0]
            (mentions,) = agents["analyzer"].process([clip])
            (tracks,) = agents["segmenter"].process([SegmenterJob(clip=clip, mentions=mentions)])
            (captions,) = agents["annotator"].process([AnnotatorJob(clip=clip, mentions=mentions, tracks=tracks)])
            job = RefinerJob(clip=clip, mentions=mentions, tracks=tracks, captions=captions, verdicts=all_kept(tracks))
            (output,) = agents["refiner"].process([job])
            found.append((output.samples, clip, truths_of(tracks, read_truth(folder / clip.video))))
    return found


def all_kept(tracks):
    check = Check(name="none", outcome="cannot_tell", score=0.5, detail="")
    verdicts = tuple(
        Verdict(track_id=track.track_id, keep=True, score=0.5, reason=None, checks=(check,)) for track in tracks.tracks
    )
    return VerdictSet(clip_id=tracks.clip_id, verdicts=verdicts, rejected=())


def truths_of(tracks, truth):
    by_masks = {item.masks.rle: item for item in truth.objects}
    return {track.track_id: by_masks[track.masks.rle] for track in tracks.tracks}


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.timeout(1800)
def test_questions_and_options_alone_answer_hardly_more_than_chance(outcomes):
    samples = [sample for made, _, _ in outcomes for sample in made]
    figures = blind_figures(samples, seed=1)
    for name, figure in figures.items():
        print(json.dumps({"blind": name} | figure.model_dump() | {"over chance": round(figure.over_chance, 3)}))
    assert figures["all"].over_chance <= 0.10
    assert all(figure.over_chance <= 0.10 for figure in figures.values() if figure.n >= 50)


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.timeout(1800)
def test_answers_and_captions_are_true(outcomes):
    told, unread = defaultdict(list), Counter()
    for samples, clip, truths in outcomes:
        for sample in samples:
            ids = [item.object_id for item in sample.objects]
            rest = [truth for track_id, truth in truths.items() if track_id not in ids]
            claims = list(claims_of(sample, [truths[track_id] for track_id in ids] + rest, clip))
            unread[sample.kind] += not claims
            for topic, true in claims:
                told[topic].append(bool(true))
                if not true:
                    print(f"{topic}: {clip.caption} {sample.conversations[1].value}")
    for topic, values in sorted(told.items()):
        print(json.dumps({"claims": topic, "n": len(values), "true": round(float(np.mean(values)), 4)}))
    everything = [value for values in told.values() for value in values]
    print(json.dumps({"claims": "all", "n": len(everything), "true": round(float(np.mean(everything)), 4)}))
    print(json.dumps({"answers without a claim that was read": unread}))
    assert np.mean(everything) >= 0.97
    assert all(np.mean(values) >= 0.9 for values in told.values() if len(values) >= 50)
