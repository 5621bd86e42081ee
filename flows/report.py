"""The report of a build: one HTML file, readable without network, that shows what was made and what was dropped."""

import base64
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from agents.base import FrameSource
from flows.counts import BuildCounts
from flows.forecast import error_table
from flows.report_pictures import (
    PictureKey,
    Strip,
    outline,
    plain_strip,
    read_pictures,
    sample_strip,
    shrink,
    track_strip,
)
from flows.work_table import work_table
from infra.forecasts import ForecastError
from infra.work import AgentWork
from schemas.clip import Clip
from schemas.label import AgentLabel
from schemas.mention import Mention
from schemas.quarantine import QuarantineEntry
from schemas.record import short_id
from schemas.sample import REGION, VIDEO, Sample
from schemas.track import Track
from schemas.verdict import Verdict

T = TypeVar("T")

MAX_BYTES = 30_000_000
MAX_CARDS = 200
COLOURS = 8
"""Outline colours in the template's style sheet; a ninth object takes the first again."""

_FITS: tuple[tuple[int, int, int], ...] = (
    (200, 320, 82),
    (200, 320, 60),
    (200, 240, 50),
    (100, 240, 50),
    (40, 240, 40),
)
"""Cards of each sort, long side in pixels and JPEG quality, tried in turn until the file is small enough."""

_TOKEN = re.compile(r"<video>\n?|<object(\d+)>(?:<region>)?|<region>")


@dataclass(frozen=True)
class ReportInputs:
    """What a report tells of.

    `counts` is over the whole build; the records may be all of it, or only those picked and what belongs to them.
    Tracks and verdicts of dropped objects belong here too; `created_at` is printed as it is. `work` is what
    the agents were last seen doing, `forecast` how far off what was predicted of it was.
    """

    build_id: str
    profile_name: str
    created_at: str
    labels: tuple[AgentLabel, ...]
    counts: BuildCounts
    clips: tuple[Clip, ...]
    mentions: tuple[Mention, ...]
    tracks: tuple[Track, ...]
    verdicts: tuple[Verdict, ...]
    samples: tuple[Sample, ...]
    quarantine: tuple[QuarantineEntry, ...]
    frames: FrameSource
    work: tuple[AgentWork, ...] = ()
    forecast: ForecastError | None = None


@dataclass(frozen=True)
class SampleCard:
    """One sample as the page shows it."""

    sample: Sample
    clip: Clip
    strip: Strip
    turns: tuple[tuple[str, Markup], ...]
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class DropCard:
    """One quarantine entry as the page shows it; `caption` is marked up where the noun's place is known."""

    entry: QuarantineEntry
    clip: Clip | None
    strip: Strip | None
    caption: Markup | None
    verdict: Verdict | None


def render_report(inputs: ReportInputs, max_bytes: int = MAX_BYTES) -> str:
    """The report's HTML, the same for the same inputs, with at most 200 samples and 200 drops.

    Pictures get coarser and cards fewer until it fits into `max_bytes`.
    """
    samples, drops = _sample_cards(inputs), _drop_cards(inputs)
    first = read_pictures(_strips(samples, drops), inputs.frames)
    pictures: Mapping[PictureKey, bytes] = first
    page = ""
    for limit, long_side_px, quality in _FITS:
        if page:
            pictures = shrink(first, long_side_px, quality)
        page = _render(inputs, samples[:limit], drops[:limit], pictures)
        if len(page.encode()) <= max_bytes:
            return page
    return _render(inputs, samples[:limit], drops[:limit], {})


def choose(items: Sequence[T], stratum: Callable[[T], Hashable], name: Callable[[T], str], limit: int) -> list[T]:
    """At most `limit` items, the strata in turn, within each by a hash of the name; any prefix is as even as it can."""
    strata: dict[Hashable, list[T]] = defaultdict(list)
    for item in sorted(items, key=lambda item: short_id(name(item))):
        strata[stratum(item)].append(item)
    rounds = [(place, str(key), item) for key, members in strata.items() for place, item in enumerate(members)]
    return [item for _, _, item in sorted(rounds, key=lambda entry: entry[:2])[:limit]]


def pick_samples(samples: Sequence[Sample]) -> list[Sample]:
    """The samples that a report shows; picking from parts and then from what was picked gives the same."""
    return choose(samples, lambda sample: (sample.kind, sample.qa_type), lambda sample: sample.sample_id, MAX_CARDS)


def pick_drops(entries: Sequence[QuarantineEntry]) -> list[QuarantineEntry]:
    """The quarantine entries that a report shows; picking from parts and then from what was picked gives the same."""
    return choose(
        entries, lambda entry: entry.reason, lambda entry: f"{entry.stage} {entry.reason} {entry.subject_id}", MAX_CARDS
    )


def _sample_cards(inputs: ReportInputs) -> list[SampleCard]:
    clips = {clip.clip_id: clip for clip in inputs.clips}
    tracks = {track.track_id: track for track in inputs.tracks}
    verdicts = {verdict.track_id: verdict for verdict in inputs.verdicts}
    return [
        SampleCard(
            sample=sample,
            clip=clips[sample.clip_id],
            strip=sample_strip(sample, clips[sample.clip_id], tracks),
            turns=marked_turns(sample),
            verdicts=tuple(verdicts[item.object_id] for item in sample.objects if item.object_id in verdicts),
        )
        for sample in pick_samples(inputs.samples)
    ]


def _drop_cards(inputs: ReportInputs) -> list[DropCard]:
    clips = {clip.clip_id: clip for clip in inputs.clips}
    tracks = {track.track_id: track for track in inputs.tracks}
    mentions = {mention.mention_id: mention for mention in inputs.mentions}
    verdicts = {verdict.track_id: verdict for verdict in inputs.verdicts}
    cards = []
    for entry in pick_drops(inputs.quarantine):
        clip, track = clips.get(entry.clip_id), tracks.get(entry.subject_id)
        mention = mentions.get(track.mention_id if track else entry.subject_id)
        cards.append(
            DropCard(
                entry=entry,
                clip=clip,
                strip=(track_strip(track, clip) if track else plain_strip(clip)) if clip else None,
                caption=_marked_caption(clip, mention) if clip else None,
                verdict=verdicts.get(entry.subject_id),
            )
        )
    return cards


def marked_turns(sample: Sample) -> tuple[tuple[str, Markup], ...]:
    """Speaker and escaped text of each turn, its `<region>` and `<objectN>` as chips in the colour of their object.

    Regions of questions stand for the objects in order; N counts objects from 0, as in the official files.
    """
    regions_seen = 0
    turns = []
    for turn in sample.conversations:
        pieces, end = [], 0
        for token in _TOKEN.finditer(turn.value):
            pieces += [escape(turn.value[end : token.start()]), _chip(token, sample, regions_seen)]
            regions_seen += turn.speaker == "human" and token[0].endswith(REGION)
            end = token.end()
        pieces.append(escape(turn.value[end:]))
        turns.append((turn.speaker, Markup().join(pieces)))
    return tuple(turns)


def _chip(token: re.Match[str], sample: Sample, regions_seen: int) -> Markup:
    if token[0].startswith(VIDEO):
        return Markup('<span class="chip plain">video</span> ')
    # an answer's bare region is that of the question before it
    number = int(token[1]) if token[1] else min(regions_seen, len(sample.objects) - 1)
    if number >= len(sample.objects):
        return escape(token[0])
    label = f"{number} {sample.objects[number].noun}" if len(sample.objects) > 1 else sample.objects[number].noun
    return Markup('<span class="chip o{}">{}</span>').format(number % COLOURS, label)


def _marked_caption(clip: Clip, mention: Mention | None) -> Markup:
    if mention is None:
        return escape(clip.caption)
    before, said, after = (
        clip.caption[: mention.start_char],
        clip.caption[mention.start_char : mention.end_char],
        clip.caption[mention.end_char :],
    )
    return Markup("{}<mark>{}</mark>{}").format(before, said, after)


def _render(
    inputs: ReportInputs,
    samples: Sequence[SampleCard],
    drops: Sequence[DropCard],
    pictures: Mapping[PictureKey, bytes],
) -> str:
    samples = sorted(samples, key=lambda card: (card.sample.kind, card.sample.qa_type, card.sample.sample_id))
    drops = sorted(drops, key=lambda card: (card.entry.stage, card.entry.reason, card.entry.subject_id))
    shown = {key for strip in _strips(samples, drops) for key in strip.picture_keys() if key in pictures}
    return _template().render(
        inputs=inputs,
        counts=inputs.counts,
        samples=samples,
        drops=drops,
        kinds=_tags(card.sample.kind for card in samples),
        qa_types=_tags(card.sample.qa_type for card in samples if card.sample.qa_type != "none"),
        reasons=_tags(card.entry.reason for card in drops),
        css_class={key: f"p{number}" for number, key in enumerate(sorted(shown))},
        picture_uri={key: f"data:image/jpeg;base64,{base64.b64encode(pictures[key]).decode()}" for key in shown},
        configs={label.agent: json.dumps(json.loads(label.config_json), indent=1) for label in inputs.labels},
        colours=COLOURS,
        outline=outline,
        work=work_table(inputs.work),
        forecast=error_table(inputs.forecast) if inputs.forecast else None,
    )


def _strips(samples: Sequence[SampleCard], drops: Sequence[DropCard]) -> list[Strip]:
    return [card.strip for card in samples] + [card.strip for card in drops if card.strip]


def _tags(values: Iterable[str]) -> list[tuple[str, int]]:
    return sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))


def _template() -> Template:
    loader = PackageLoader("flows", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.jinja")
