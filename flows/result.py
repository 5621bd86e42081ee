"""What a build ended with: the figures that the command line, the run's page and other programs read."""

import shlex
from typing import Self, get_args

from flows.forecast import error_table
from flows.work_table import work_table
from infra.builds import KINDS, CountEntry, Manifest
from infra.forecasts import ForecastError
from infra.lake import Lake
from infra.pool import FailureReason
from infra.work import AgentWork
from schemas.record import Record


class BuildResult(Record):
    """A committed build. `is_new` is False where the very same build was there already; `num_failed` counts clips
    that an agent could not finish, for `failed_reasons` (they are in quarantine until `videorefer quarantine retry`
    takes them out); `ray_started` tells whether there was any work.
    """

    build_id: str
    lake: str
    folder: str
    report_uri: str
    is_new: bool
    ray_started: bool
    num_samples: int
    num_quarantined: int
    num_failed: int
    failed_reasons: tuple[FailureReason, ...]
    counts: tuple[CountEntry, ...]
    work: tuple[AgentWork, ...] = ()
    forecast: ForecastError | None = None

    @classmethod
    def of(cls, manifest: Manifest, lake: Lake, *, is_new: bool) -> Self:
        """The result that a manifest stands for."""
        drops = [(entry.name.split()[-1], entry.n) for entry in manifest.counts if entry.group == "quarantine"]
        failures = {
            reason: n for reason in get_args(FailureReason) if (n := sum(n for name, n in drops if name == reason))
        }
        return cls(
            build_id=manifest.build_id,
            lake=lake.address,
            folder=lake.path("builds", manifest.build_id),
            report_uri=lake.uri("builds", manifest.build_id, "report.html"),
            is_new=is_new,
            ray_started=False,
            num_samples=sum(entry.rows for kind in KINDS for entry in manifest.shards_of(kind)),
            num_quarantined=sum(entry.rows for entry in manifest.shards_of("quarantine")),
            num_failed=sum(failures.values()),
            failed_reasons=tuple(failures),
            counts=manifest.counts,
            work=manifest.work,
            forecast=manifest.forecast,
        )

    def summary(self) -> str:
        """A few lines for a terminal."""
        state = "committed" if self.is_new else "unchanged, already committed"
        lines = [
            f"build {self.build_id} {state}: {self.num_samples} samples, {self.num_quarantined} quarantined",
            *(f"  {entry.n:>5} {entry.name}" for entry in self.counts if entry.group == "samples"),
            f"dataset: {self.folder}/data",
            f"report:  {self.report_uri}",
        ]
        if self.num_quarantined and not self.num_failed:
            lines.append(f"dropped, and why: {shlex.join(('videorefer', 'quarantine', 'list', '--lake', self.lake))}")
        if self.num_failed:
            words = ["videorefer", "quarantine", "list", "--lake", self.lake]
            words += [word for reason in self.failed_reasons for word in ("--reason", reason)]
            lines.append(f"{self.num_failed} clips failed: {shlex.join(words)}; quarantine retry tries them again")
        if self.forecast:
            lines += ["forecast, and what it was:", error_table(self.forecast).text()]
        return "\n".join(lines)

    def markdown(self) -> str:
        """The counts as tables, for the run's page."""
        parts = [
            f"# Build `{self.build_id}`",
            f"{self.num_samples} samples, {self.num_quarantined} quarantined, "
            f"{self.num_failed} clips failed. Report: `{self.report_uri}`",
        ]
        for group in ("stages", "samples", "quarantine"):
            rows = [f"| {entry.name} | {entry.n} |" for entry in self.counts if entry.group == group]
            parts.append("\n".join([f"## {group.capitalize()}", "", "| | n |", "|---|---:|", *rows]))
        if self.work:
            parts += ["## Work", work_table(self.work).markdown()]
        if self.forecast:
            parts += ["## Forecast", error_table(self.forecast).markdown()]
        return "\n\n".join(parts)
