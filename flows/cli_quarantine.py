"""`videorefer quarantine`: what was dropped or failed, one entry in full, and failures tried again."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.cli_common import JsonOption, LakeOption, one_line_errors, print_json
from flows.quarantine import Choice, QuarantineList, Retry, Story, list_quarantine, retry, tell
from infra.lake import Lake
from schemas.quarantine import QuarantineEntry

_EVIDENCE_CHARS = 160

quarantine_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help=(
        "What was dropped or failed, and why.\n\n"
        "An agent's verdict (`not_found`, `colour_mismatch`) or a bad row (`no_caption`) stays: the same input gives "
        "the same again. A failure of the machine (`agent_error`, `agent_timeout`, `agent_died`) or of a chat "
        "server (`no_answer`; `request_declined`: a plain no to this clip's question, by a filter say) is retryable: "
        "the clip was tried and is not tried again until `retry` takes it out."
    ),
)

BuildOption = Annotated[str | None, typer.Option("--build", help="A build; the latest if not given.")]
ReasonOption = Annotated[list[str] | None, typer.Option("--reason", help="Only this reason; may be given repeatedly.")]
StageOption = Annotated[
    list[str] | None, typer.Option("--stage", help="Only this stage (`source` or an agent); may be given repeatedly.")
]


@quarantine_app.command("list")
def list_command(
    lake: LakeOption,
    build_id: BuildOption = None,
    reasons: ReasonOption = None,
    stages: StageOption = None,
    num: Annotated[int, typer.Option("-n", min=1, help="At most so many entries, where some were chosen.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """How many entries each stage made for each reason; with `--reason` or `--stage`, the entries themselves."""
    with one_line_errors():
        choice = Choice(stages=stages or (), reasons=reasons or ())
        is_chosen = bool(stages or reasons)
        found = list_quarantine(Lake(lake), build_id, choice, num if is_chosen else 0)
        if as_json:
            print_json(found.model_dump(mode="json"))
        elif is_chosen:
            _print_entries(found, Console())
        else:
            _print_counts(found, Console())


@quarantine_app.command("show")
def show_command(
    lake: LakeOption,
    name: Annotated[str, typer.Argument(help="The id of what was dropped, or of its clip or row.")],
    build_id: BuildOption = None,
    num: Annotated[int, typer.Option("-n", min=1, help="At most so many clips.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Everything known of an entry: evidence, row, caption, the file to look at, and what else became of the clip."""
    with one_line_errors():
        stories = tell(Lake(lake), build_id, name, num)
        if as_json:
            print_json({"stories": [story.model_dump(mode="json") for story in stories]})
            return
        for story in stories:
            _print_story(story, Console())


@quarantine_app.command("retry")
def retry_command(
    lake: LakeOption,
    names: Annotated[
        list[str] | None, typer.Argument(help="Ids of entries, clips or rows; all failures if none is given.")
    ] = None,
    build_id: BuildOption = None,
    reasons: ReasonOption = None,
    stages: StageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take failures out, so that the next build tries their clips again; says the command for it."""
    with one_line_errors():
        choice = Choice(stages=stages or (), reasons=reasons or (), names=names or ())
        done = retry(Lake(lake), build_id, choice)
        if as_json:
            print_json(done.model_dump(mode="json") | {"command_line": done.command.line(lake)})
        else:
            _print_retry(done, lake, Console())


def _print_counts(found: QuarantineList, console: Console) -> None:
    say = partial(console.print, highlight=False, emoji=False, soft_wrap=True)
    retryable = sum(count.retryable for count in found.counts)
    say(f"build {found.build_id}: {found.total} in quarantine, {retryable} of them retryable")
    table = Table("stage", "reason", box=None, header_style="dim", expand=True)
    table.add_column("n", justify="right")
    table.add_column("retryable", justify="right")
    table.add_column("for example", no_wrap=True, ratio=1)
    for count in found.counts:
        said = escape(f"{_subject(count.example)}: {_one_line(count.example.evidence)}")
        table.add_row(count.stage, count.reason, str(count.n), str(count.retryable or ""), said)
    console.print(table)


def _print_entries(found: QuarantineList, console: Console) -> None:
    say = partial(console.print, highlight=False, emoji=False, soft_wrap=True)
    say(f"build {found.build_id}: {found.total} such entries in quarantine")
    for entry in found.entries:
        _print_entry(entry, console)
    if found.total > len(found.entries):
        say(f"and {found.total - len(found.entries)} more (-n)")


def _print_entry(entry: QuarantineEntry, console: Console, *, whole: bool = False) -> None:
    say = partial(console.print, highlight=False, emoji=False, soft_wrap=True)
    mark = ", retryable" if entry.retryable else ""
    say(f"[bold]{escape(_subject(entry))}[/] {entry.stage}: {entry.reason}{mark}")
    lines = entry.evidence.splitlines() if whole else [_one_line(entry.evidence)]
    for line in lines:
        say(f"  {escape(line)}")


def _print_story(story: Story, console: Console) -> None:
    say = partial(console.print, highlight=False, emoji=False, soft_wrap=True)
    for entry in story.entries:
        _print_entry(entry, console, whole=True)
    say(f"  row: {escape(story.source_id)}")
    if story.clip:
        say(f"  clip: {story.clip.clip_id}, [{story.clip.start_s:.2f}, {story.clip.end_s:.2f}) s")
    if story.unknown:
        say(f"  video and caption: not known, {escape(story.unknown)}")
    else:
        say(f"  video: {escape(story.video or 'none')}")
        say(f"  caption: {escape(story.caption or 'none')}")
    for fate in story.others:
        say(f"  also in the clip: {escape(fate.noun or 'the clip')} {fate.object_id}, {escape(fate.became)}")


def _print_retry(done: Retry, lake: str, console: Console) -> None:
    say = partial(console.print, highlight=False, emoji=False, soft_wrap=True)
    say(f"taken out: {len(done.taken)} failures of build {done.build_id}")
    for line in _counted(done.taken):
        say(f"  {line}")
    for refusal in done.refused:
        say(f"left in: {escape(_subject(refusal.entry))} is {refusal.entry.reason}: {refusal.why}")
    say(f"try again: {escape(done.command.line(lake))}")


def _counted(entries: Sequence[QuarantineEntry]) -> list[str]:
    places = [f"{entry.stage} {entry.reason}" for entry in entries]
    return [f"{places.count(place)} {place}" for place in dict.fromkeys(places)]


def _subject(entry: QuarantineEntry) -> str:
    return f"{entry.subject_id} {entry.noun}".rstrip()


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _EVIDENCE_CHARS else f"{line[:_EVIDENCE_CHARS]}..."
