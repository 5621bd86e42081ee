"""What a build ended with: the figures that the command line, the run's page and other programs read."""

from pathlib import Path
from typing import Self

from infra.builds import KINDS, CountEntry, Manifest
from schemas.record import Record


class BuildResult(Record):
    """A committed build. `is_new` is False where the very same build was there already; `num_failed` counts clips
    that an agent could not finish (they are in quarantine and tried again by the next run); `ray_started` tells whether
    there was any work.
    """

    build_id: str
    folder: str
    report_uri: str
    is_new: bool
    ray_started: bool
    num_samples: int
    num_quarantined: int
    num_failed: int
    counts: tuple[CountEntry, ...]

    @classmethod
    def of(cls, manifest: Manifest, folder: str, *, is_new: bool, num_failed: int) -> Self:
        """The result that a manifest stands for."""
        report = f"{folder}/report.html"
        return cls(
            build_id=manifest.build_id,
            folder=folder,
            report_uri=Path(report).as_uri() if folder.startswith("/") else report,
            is_new=is_new,
            ray_started=False,
            num_samples=sum(entry.rows for kind in KINDS for entry in manifest.shards_of(kind)),
            num_quarantined=sum(entry.rows for entry in manifest.shards_of("quarantine")),
            num_failed=num_failed,
            counts=manifest.counts,
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
        if self.num_failed:
            lines.insert(1, f"  {self.num_failed} clips failed; the same command tries them again")
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
        return "\n\n".join(parts)
