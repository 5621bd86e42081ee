"""Which change made two builds differ: of the source, of an agent's label, or a failure."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import get_args

from flows.clip_lookup import clips_of_rows
from flows.diff_rows import Pair
from flows.profile_config import ROLES
from infra.builds import KINDS, Manifest, read_columns
from infra.builds import Content as ContentName
from infra.lake import Lake
from infra.pool import FailureReason
from schemas.clip import Clip
from schemas.label import AgentLabel
from schemas.record import Record

_FAILURES = get_args(FailureReason)
_LABEL_FIELDS = {
    "engine": "engine",
    "weights": "weights",
    "config_json": "config",
    "prompt_hash": "prompt",
    "revision": "revision",
}
_CLIP_FIELDS = {"caption": "caption", "video_sha256": "video", "given_sha256": "masks"}


class AgentChange(Record):
    """What of an agent's label differs; the agent `source` stands for the rules of cutting rows into clips."""

    agent: str
    fields: tuple[str, ...]

    def describe(self) -> str:
        """`refiner prompt`, `segmenter weights and config`."""
        return f"{self.agent} {' and '.join(self.fields)}"


def label_changes(old: tuple[AgentLabel, ...], new: tuple[AgentLabel, ...]) -> tuple[AgentChange, ...]:
    """What differs between the labels of two builds, in the order of the chain."""
    before, after = ({label.agent: label for label in labels} for labels in (old, new))
    changes = []
    for role in ROLES:
        one, two = before.get(role), after.get(role)
        if one is not None and two is not None and one != two:
            fields = [said for name, said in _LABEL_FIELDS.items() if getattr(one, name) != getattr(two, name)]
            changes.append(AgentChange(agent=role, fields=tuple(fields)))
    return tuple(changes)


@dataclass
class Content:
    """The ids in one build: every clip with its row, the clips that an agent failed on and the rows that gave none,
    both with the reason, and every row.
    """

    clips: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    sources: set[str] = field(default_factory=set)


class Causes:
    """Why a sample differs between two builds: the first of what changed, along the way from the source."""

    def __init__(self, lake: Lake, old: Manifest, new: Manifest) -> None:
        self._lake = lake
        self.old, self.new = content_of(lake, old), content_of(lake, new)
        labels = label_changes(old.labels, new.labels)
        self._cutting = _cutting_rules(old) != _cutting_rules(new)
        self.agents = (*([AgentChange(agent="source", fields=("config",))] if self._cutting else []), *labels)
        self._of_agents = labels[0].describe() if labels else "not known: outputs were made again"
        self._rows = self._row_changes()

    def both_have(self, clip_id: str) -> bool:
        """Whether a clip is in both builds."""
        return clip_id in self.old.clips and clip_id in self.new.clips

    def of_same_clip(self, pair: Pair) -> str:
        """Why a sample of a clip that both builds have is another one."""
        if pair.old and pair.new and pair.old.facts != pair.new.facts:
            return "source licence or file name"
        before, after = (content.failed.get(pair.row.clip_id) for content in (self.old, self.new))
        if before != after:
            return f"failure: {after}" if after else f"retry after {before}"
        return self._of_agents

    def of_row(self, pair: Pair) -> str:
        """Why a sample of a clip that only one build has is another one: what became of its row."""
        return f"source {self._rows[pair.row.source_id]}"

    def row_counts(self) -> list[tuple[str, int]]:
        """How many rows came, went or changed, most frequent first."""
        return sorted(Counter(self._rows.values()).items(), key=lambda item: (-item[1], item[0]))

    def _row_changes(self) -> dict[str, str]:
        old, new = self.old, self.new
        different = {content.clips[clip_id] for content in (old, new) for clip_id in content.clips
                     if not self.both_have(clip_id)}  # fmt: skip
        of_row: dict[str, tuple[list[Clip], list[Clip]]] = defaultdict(lambda: ([], []))
        for clip in clips_of_rows(self._lake, different & old.sources & new.sources).values():
            for side, content in enumerate((old, new)):
                if clip.clip_id in content.clips:
                    of_row[clip.source_id][side].append(clip)
        changed = different | (old.sources ^ new.sources)
        return {source_id: self._row_change(source_id, *of_row[source_id]) for source_id in sorted(changed)}

    def _row_change(self, source_id: str, old: list[Clip], new: list[Clip]) -> str:
        if source_id not in self.old.sources:
            return "row added"
        if source_id not in self.new.sources:
            return "row removed"
        if not old or not new:
            before, after = self.old.rejected.get(source_id), self.new.rejected.get(source_id)
            return f"row now {after}" if after else f"row no longer {before}" if before else "row changed"
        fields = [said for name, said in _CLIP_FIELDS.items() if _values(old, name) != _values(new, name)]
        if fields:
            return " and ".join(fields)
        if _spans(old) != _spans(new):
            return "config" if self._cutting else "span"
        return "row changed"


def content_of(lake: Lake, manifest: Manifest) -> Content:
    """The ids in a build; columns of ids alone are read."""
    content = Content()
    for kind in KINDS:
        for clip_id, source_id in _columns(lake, manifest, kind, ("clip_id", "source_id")):
            content.clips[clip_id] = source_id
    columns = ("clip_id", "source_id", "stage", "reason")
    for clip_id, source_id, stage, reason in _columns(lake, manifest, "quarantine", columns):
        content.sources.add(source_id)
        if stage == "source":
            content.rejected[source_id] = reason
        else:
            content.clips[clip_id] = source_id
        if reason in _FAILURES:
            content.failed[clip_id] = f"{stage} {reason}"
    content.sources.update(content.clips.values())
    return content


def _columns(lake: Lake, manifest: Manifest, content: ContentName, names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for table in read_columns(lake, manifest.build_id, content, names):
        yield from zip(*(table[name].to_pylist() for name in names), strict=True)


def _values(clips: list[Clip], name: str) -> set[str]:
    return {getattr(clip, name) for clip in clips}


def _spans(clips: list[Clip]) -> set[tuple[int, int]]:
    return {(clip.start_frame, clip.end_frame) for clip in clips}


def _cutting_rules(manifest: Manifest) -> object:
    try:
        return json.loads(manifest.profile_json)["clips"]
    except (ValueError, KeyError, TypeError):
        return None
