"""Refiner: verdicts, facts and texts to instruction samples.

As the paper (App. C): short captions reuse the clip's caption for singular subjects, detailed captions merge the texts
on motion and appearance and leave out subjects that do not move, question-answer pairs are basic, reasoning or future.
The paper has GPT-4o write the texts; here they are merged by rule, and a small model may word them anew as long as all
facts survive.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import combinations
from typing import NamedTuple

from pydantic import Field

from agents.base import ChatModel
from agents.measure import apart
from agents.questions import BASIC_TOPICS, BasicTopic, QaPair, basic, choose, future, pick, reasoning
from agents.relations import group, relation
from agents.wording import Fact, escape_tags, facts_of, facts_survive, merge, subject_of
from schemas.caption import ObjectCaption
from schemas.clip import Clip
from schemas.given import GIVEN_BY_SOURCE
from schemas.jobs import RefinerJob
from schemas.label import AgentLabel
from schemas.mask import area_px
from schemas.mention import Mention
from schemas.quarantine import QuarantineEntry
from schemas.record import Record, short_id
from schemas.sample import (
    MAX_MASKED_FRAMES,
    REGION,
    VIDEO,
    Kind,
    Provenance,
    QaType,
    Sample,
    SampleObject,
    SampleSet,
    Turn,
)
from schemas.track import Track
from schemas.verdict import Verdict

REVISION = 2
PROMPT = "refine_detailed.md"

SHORT_QUESTIONS = (
    f"Please describe {REGION} in the video briefly.",
    f"What is happening in the video around {REGION}? Answer in one sentence.",
    f"Give a short caption of the video for the object {REGION}.",
    f"In a few words, what does the video show of {REGION}?",
)
DETAILED_QUESTIONS = (
    f"Please describe {REGION} in the video in detail.",
    f"Describe how {REGION} looks and how it moves in the video.",
    f"What does {REGION} look like, and what does it do over the course of the video?",
    f"Give a detailed description of the object {REGION} in the video.",
)


class RefinerConfig(Record):
    """Settings of the refiner."""

    paper_short: bool = False
    """Short captions of tracks that the reviewer dropped too, as in the paper, whose short path has no reviewer."""
    basic_per_object: int = Field(default=2, ge=0)
    """Basic questions on each kept object, at most."""
    basic_topics: tuple[BasicTopic, ...] = BASIC_TOPICS
    """Facts that basic questions ask for."""
    reasoning_per_object: int = Field(default=1, ge=0)
    """Reasoning questions on each kept object, at most."""
    future_per_object: int = Field(default=1, ge=0)
    """Future questions on each kept object, at most."""
    reasoning_per_pair: int = Field(default=1, ge=0)
    """Reasoning questions on each pair of kept objects of one clip, at most."""
    max_pairs: int = Field(default=3, ge=0)
    """Pairs of objects of one clip that are asked about; a hash chooses among more."""
    reasoning_per_group: int = Field(default=1, ge=0)
    """Questions on all kept objects of one clip, where there are at least three."""


TEMPLATE = "template"
"""Who words what no model does."""


class Note(NamedTuple):
    """What a detailed caption has to say of one track: the merged sentences, and the facts in them that must stay."""

    track_id: str
    text: str
    facts: tuple[Fact, ...]


class Worded(NamedTuple):
    """A detailed caption and who wrote it."""

    text: str
    wording: str


class Refiner:
    """RefinerJob to SampleSet.

    With a chat model, detailed captions are its wording wherever all facts survive, and merged sentences elsewhere;
    without one they are merged sentences. `labels` are those of the agents before it, for the samples' provenance.
    """

    def __init__(self, config: RefinerConfig, chat: ChatModel | None, labels: tuple[AgentLabel, ...]) -> None:
        self._config = config
        self._chat = chat
        self._prompt = (files("agents") / "prompts" / PROMPT).read_text(encoding="utf-8")
        self._maker = SampleMaker(config, (*labels, self.label()))

    def label(self) -> AgentLabel:
        """Engine `template`, or the chat model with the hash of its prompt."""
        return AgentLabel(
            agent="refiner",
            engine=self._chat.name if self._chat else TEMPLATE,
            weights=self._chat.weights() if self._chat else (),
            config_json=self._config.model_dump_json(),
            prompt_hash=hashlib.sha256(self._prompt.encode()).hexdigest() if self._chat else "",
            revision=REVISION,
        )

    def setup(self) -> None:
        """Load the chat model, if any."""
        if self._chat:
            self._chat.setup()

    def close(self) -> None:
        """Nothing to free beyond the chat model, which goes with its owner."""

    def process(self, jobs: Sequence[RefinerJob]) -> list[SampleSet]:
        """One sample set per job; every kept track is in a sample or, with the reason, in `rejected`."""
        return [
            self._maker.samples(job, {note.track_id: self._worded(note) for note in self._maker.notes(job)})
            for job in jobs
        ]

    def _worded(self, note: Note) -> Worded:
        if self._chat:
            # as long as the notes at most, at about four characters a token
            reply = self._chat.reply(self._prompt, f"Notes: {note.text}\nRewritten:", len(note.text) // 3)
            reply = reply.split("\n")[0].strip()
            if facts_survive(reply, note.text, note.facts):
                return Worded(reply, self._chat.name)
        return Worded(note.text, TEMPLATE)


class SampleMaker:
    """The samples of a clip around detailed captions that someone words: first their `notes`, then all `samples`.

    `labels` are those of all agents, the refiner last, for the samples' provenance.
    """

    def __init__(self, config: RefinerConfig, labels: tuple[AgentLabel, ...]) -> None:
        self._config = config
        self._labels = labels

    def notes(self, job: RefinerJob) -> list[Note]:
        """One for each detailed caption, in the order of the tracks."""
        case = _case_of(job)
        return [
            Note(
                track.track_id,
                merge(escape_tags(caption.appearance), escape_tags(caption.motion), subject_of(caption)),
                facts_of(caption, job.clip.start_s),
            )
            for track in case.kept
            if (caption := case.described(track))
        ]

    def samples(self, job: RefinerJob, worded: Mapping[str, Worded]) -> SampleSet:
        """All samples of a clip, with the wording of each of its notes by track id."""
        case = _case_of(job)
        samples = [
            *self._short_captions(case),
            *self._detailed_captions(case, worded),
            *self._questions(case),
        ]
        used = {item.object_id for sample in samples for item in sample.objects}
        rejected = [_no_sample(case, track) for track in case.kept if track.track_id not in used]
        return SampleSet(clip_id=job.clip.clip_id, samples=tuple(samples), rejected=tuple(rejected))

    def _short_captions(self, case: "_Case") -> Iterator[Sample]:
        tracks = case.judged if self._config.paper_short else case.kept
        for track in tracks:
            mention = case.mentions[track.mention_id]
            if mention.role == "subject" and mention.number == "singular":
                question = pick(SHORT_QUESTIONS, track.track_id)
                answer = escape_tags(case.clip.caption)
                yield self._sample(case, "short_caption", "none", [track], question, answer, "source_caption")

    def _detailed_captions(self, case: "_Case", worded: Mapping[str, Worded]) -> Iterator[Sample]:
        for track in case.kept:
            if case.described(track):
                question = pick(DETAILED_QUESTIONS, track.track_id)
                answer, wording = worded[track.track_id]
                yield self._sample(case, "detailed_caption", "none", [track], question, answer, wording)

    def _questions(self, case: "_Case") -> Iterator[Sample]:
        tracks = {track.track_id: track for track in case.kept}
        captions = [case.captions[track_id] for track_id in tracks if track_id in case.captions]
        for pair in self._pairs(case.clip, captions, tracks):
            asked = [tracks[caption.track_id] for caption in pair.captions]
            yield self._sample(case, "qa", pair.qa_type, asked, pair.question, pair.answer, TEMPLATE)

    def _pairs(self, clip: Clip, captions: Sequence[ObjectCaption], tracks: Mapping[str, Track]) -> Iterator[QaPair]:
        config = self._config
        for caption in captions:
            about = [pair for pair in basic(clip, caption) if pair.topic in config.basic_topics]
            yield from choose(about, config.basic_per_object)
            yield from choose(reasoning(clip, caption), config.reasoning_per_object)
            if clip.start_s < caption.visible_until_s < clip.end_s:
                yield from choose(future(clip, caption), config.future_per_object)
        couples = sorted(combinations(captions, 2), key=lambda two: short_id(*(one.track_id for one in two)))
        for first, second in couples[: config.max_pairs]:
            never_touch = apart(tracks[first.track_id].masks, tracks[second.track_id].masks)
            yield from choose(relation(clip, first, second, apart=never_touch), config.reasoning_per_pair)
        yield from choose(group(clip, captions), config.reasoning_per_group)

    def _sample(
        self,
        case: "_Case",
        kind: Kind,
        qa_type: QaType,
        tracks: Sequence[Track],
        question: str,
        answer: str,
        wording: str,
    ) -> Sample:
        clip = case.clip
        until_s = case.captions[tracks[0].track_id].visible_until_s if qa_type == "future" else clip.end_s
        object_ids = [track.track_id for track in tracks]
        return Sample(
            sample_id=short_id(clip.clip_id, kind, qa_type, *object_ids, question),
            kind=kind,
            qa_type=qa_type,
            split=clip.split,
            clip_id=clip.clip_id,
            source_id=clip.source_id,
            video=clip.video,
            video_sha256=clip.video_sha256,
            license=clip.license,
            start_s=clip.start_s,
            end_s=clip.end_s,
            visible_until_s=until_s,
            fps=clip.fps,
            height=clip.height_px,
            width=clip.width_px,
            conversations=(
                Turn.model_validate({"from": "human", "value": f"{VIDEO}\n{question}"}),
                Turn.model_validate({"from": "gpt", "value": answer}),
            ),
            objects=tuple(_sample_object(track, kind, until_s) for track in tracks),
            provenance=self._provenance(clip, [case.verdicts[track_id] for track_id in object_ids], wording),
        )

    def _provenance(self, clip: Clip, verdicts: Sequence[Verdict], wording: str) -> Provenance:
        labels = [_as_it_ran(label, clip) for label in self._labels]
        return Provenance(
            engines=tuple(f"{label.agent}={label.engine}" for label in labels),
            weights=tuple(f"{label.agent}={weight}" for label in labels for weight in label.weights),
            prompt_hashes=tuple(f"{label.agent}={label.prompt_hash}" for label in labels if label.prompt_hash),
            revisions=tuple(f"{label.agent}={label.revision}" for label in labels),
            verdict="; ".join(f"{'kept' if verdict.keep else 'dropped'} {verdict.score:.3f}" for verdict in verdicts),
            wording=wording,
        )


def _as_it_ran(label: AgentLabel, clip: Clip) -> AgentLabel:
    """The label, but for a segmenter that passed on masks of the source and loaded no model for it."""
    if label.agent != "segmenter" or not clip.given_sha256:
        return label
    return label.model_copy(update={"engine": GIVEN_BY_SOURCE, "weights": ()})


class _Case:
    """A job with its parts by id."""

    def __init__(self, job: RefinerJob) -> None:
        self.clip = job.clip
        self.mentions = {mention.mention_id: mention for mention in job.mentions.mentions}
        self.captions = {caption.track_id: caption for caption in job.captions.captions}
        self.verdicts = {verdict.track_id: verdict for verdict in job.verdicts.verdicts}
        self.judged = [track for track in job.tracks.tracks if track.track_id in self.verdicts]
        self.kept = [track for track in self.judged if self.verdicts[track.track_id].keep]

    def described(self, track: Track) -> ObjectCaption | None:
        """What a detailed caption of the track is made of; subjects that do not move have none."""
        caption = self.captions.get(track.track_id)
        return None if caption is None or _is_static_subject(self.mentions[track.mention_id], caption) else caption


def _case_of(job: RefinerJob) -> _Case:
    clip_ids = {part.clip_id for part in (job.clip, job.mentions, job.tracks, job.captions, job.verdicts)}
    if len(clip_ids) > 1:
        raise ValueError(f"a refiner's job is about one clip, got {sorted(clip_ids)}")
    return _Case(job)


def mid_segment(num_items: int, num_wanted: int) -> list[int]:
    """`num_wanted` indices spread over `num_items`, each near the middle of an equal part; all where there are no more.

    The official rule (`frame_sample` in benchmark/description_add_mask_first_frame.py), with numpy's rounding.
    """
    if num_items <= num_wanted:
        return list(range(num_items))
    part = (num_items - 1) / num_wanted
    return [int(round(part * i) + round(part * (i + 1))) // 2 for i in range(num_wanted)]


def _sample_object(track: Track, kind: Kind, until_s: float) -> SampleObject:
    """Frames before `until_s` in which the object is seen: spread over them, or for a short caption the best one."""
    masks = track.masks
    seen = [
        (index, time_s, counts)
        for index, time_s, counts in zip(masks.frame_idx, masks.frame_time_s, masks.rle, strict=True)
        if counts is not None and time_s < until_s
    ]
    if kind == "short_caption":
        middle = range(len(seen) // 4, max(len(seen) // 4 + 1, len(seen) - len(seen) // 4))
        chosen = [seen[max(middle, key=lambda i: (area_px(seen[i][2]), -abs(2 * i + 1 - len(seen))))]]
    else:
        chosen = [seen[i] for i in mid_segment(len(seen), MAX_MASKED_FRAMES[kind])]
    return SampleObject(
        object_id=track.track_id,
        noun=track.noun,
        frame_idx=tuple(index for index, _, _ in chosen),
        frame_time_s=tuple(time_s for _, time_s, _ in chosen),
        rle=tuple(counts for _, _, counts in chosen),
    )


def _is_static_subject(mention: Mention, caption: ObjectCaption) -> bool:
    """The subjects that the paper leaves out of detailed captions."""
    return mention.role == "subject" and not caption.moving


def _no_sample(case: _Case, track: Track) -> QuarantineEntry:
    has_caption = track.track_id in case.captions
    why = "no question was asked of it by the configuration" if has_caption else "the annotator gave no caption of it"
    mention = case.mentions[track.mention_id]
    evidence = f"{mention.number} {mention.role}, kept by the reviewer, but {why}"
    return QuarantineEntry.of_clip(
        case.clip, "refiner", "no_sample", evidence, subject_id=track.track_id, noun=track.noun
    )
