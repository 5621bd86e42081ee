"""What the doctor says of one thing."""

from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape

from schemas.record import Record


class Finding(Record):
    """One thing looked at; `mend` is the command or act that puts it right, empty where nothing is to be done.

    One that is `ok` and has something to mend keeps no build from running.
    """

    what: str
    ok: bool
    detail: str
    mend: str = ""


def print_findings(findings: Iterable[Finding]) -> None:
    """A line each on stdout, and one more with what mends it."""
    console = Console()
    for finding in findings:
        mark = "[red]miss[/]" if not finding.ok else "[yellow]note[/]" if finding.mend else "[green]ok  [/]"
        said = f"{finding.what}: {finding.detail}"
        console.print(f"{mark} {escape(said)}", highlight=False, emoji=False, soft_wrap=True)
        if finding.mend:
            console.print(f"     -> {escape(finding.mend)}", highlight=False, emoji=False, soft_wrap=True)
