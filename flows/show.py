"""Rows of a build for the eye: samples as conversations, drops with their evidence."""

from functools import partial
from itertools import chain, islice

from rich.console import Console
from rich.markup import escape

from flows.result import BuildResult
from infra.builds import KINDS, chosen_manifest, read_quarantine, read_samples
from infra.lake import Lake, LakeError
from schemas.quarantine import QuarantineEntry
from schemas.record import Record
from schemas.sample import Sample


class Rows(Record):
    """What was found; masks are left out of `samples` by `print_rows`, not here."""

    build_id: str
    report_uri: str
    samples: tuple[Sample, ...]
    quarantine: tuple[QuarantineEntry, ...]


def find_rows(lake: Lake, build_id: str | None, what: str, limit: int) -> Rows:
    """Samples and quarantine entries of a build that `what` names: an id of a sample, clip, source or object, a kind
    of sample, or a reason; everything if empty. At most `limit` of each. Raises LakeError where the lake has no build
    or the build nothing by that name.
    """
    manifest = chosen_manifest(lake, build_id)
    chosen = manifest.build_id
    samples = chain.from_iterable(read_samples(lake, chosen, kind) for kind in KINDS)
    found = tuple(islice((sample for sample in samples if not what or what in _names_of(sample)), limit))
    entries = read_quarantine(lake, chosen)
    dropped = tuple(islice((entry for entry in entries if not what or what in _names_of_entry(entry)), limit))
    if what and not found and not dropped:
        raise LakeError(
            f"build {chosen} has nothing by the name {what!r}: give an id, a kind or a reason from its report"
        )
    report = BuildResult.of(manifest, lake, is_new=False).report_uri
    return Rows(build_id=chosen, report_uri=report, samples=found, quarantine=dropped)


def print_rows(rows: Rows, console: Console) -> None:
    """Conversations and reasons, one block a row."""
    say = partial(console.print, highlight=False, emoji=False)
    say(f"build {rows.build_id}, report: {escape(rows.report_uri)}\n", soft_wrap=True)
    for sample in rows.samples:
        kind = sample.kind if sample.qa_type == "none" else f"{sample.kind} {sample.qa_type}"
        say(
            f"[bold]{sample.sample_id}[/] {kind}, {sample.split}, {escape(sample.video)} "
            f"{sample.start_s:.2f}-{sample.visible_until_s:.2f} s, worded by {sample.provenance.wording}"
        )
        for item in sample.objects:
            seen = sum(counts is not None for counts in item.rle)
            say(f"  {item.object_id} {escape(item.noun)}: {seen} masks in {len(item.rle)} frames")
        for turn in sample.conversations:
            say(f"  {turn.speaker:>5}: {escape(turn.value)}")
    for entry in rows.quarantine:
        say(
            f"[bold]{escape(entry.subject_id)}[/] {escape(entry.noun)} dropped by {entry.stage}: {entry.reason}\n"
            f"  {escape(entry.evidence)}"
        )


def _names_of(sample: Sample) -> set[str]:
    objects = {item.object_id for item in sample.objects}
    return {sample.sample_id, sample.clip_id, sample.source_id, sample.kind, sample.qa_type} | objects


def _names_of_entry(entry: QuarantineEntry) -> set[str]:
    return {entry.subject_id, entry.clip_id, entry.source_id, entry.reason, entry.stage}
