"""Live progress of a build, per agent: done, kept, dropped, rate, time left and how busy its workers are."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from flows.profile_config import ROLES, Role
from infra.token_count import TokenCount, added
from infra.work import BatchSums

LINE_EVERY_S = 10.0
"""How often a log without a screen gets a line."""


def duration(seconds: float) -> str:
    """A time to wait, as exact as one cares: `48 s`, `6 min`, `2 h 10 min`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


@dataclass(frozen=True)
class AgentProgress:
    """Counts of one agent; `total` and `done` are clips, `kept` and `dropped` what the agent made of them in this run.

    `cached` clips were found in the lake and are not opened to count what they hold; `failed` ones died or raised, in
    this run or in one before (`failed_before`, which are among `cached` too); `skipped` ones did so in an agent before;
    all are among `done`. `elapsed_s` runs from the agent's first clip, which is `begin_s` after that of the run's first
    agent; the first micro-batch to end was begun `load_s` later. `batches` sums up the work of its `workers`.
    `stored_bytes` went to the lake; `tokens` is None for an agent that asks no chat server.
    """

    total: int
    workers: int
    done: int = 0
    cached: int = 0
    failed: int = 0
    failed_before: int = 0
    skipped: int = 0
    kept: int = 0
    dropped: int = 0
    elapsed_s: float = 0.0
    begin_s: float = 0.0
    load_s: float = 0.0
    stored_bytes: int = 0
    tokens: TokenCount | None = None
    batches: BatchSums = field(default_factory=BatchSums)

    @property
    def worked(self) -> int:
        """Clips worked on in this run, with success or without."""
        return self.done - self.cached - self.skipped

    @property
    def busy_s(self) -> float:
        """Seconds in which its workers worked, all added up."""
        return self.batches.busy_s

    @property
    def rate_per_s(self) -> float:
        """Clips worked on per second since the agent began."""
        return self.worked / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def busy_share(self) -> float:
        """The part of its workers' time, since the agent began, in which they worked: 1 is all of it.

        They load the engine meanwhile, or wait for what the agents before have to do.
        """
        return self.busy_s / (self.elapsed_s * self.workers) if self.elapsed_s > 0 else 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds left at that rate; None before the first clip."""
        return (self.total - self.done) / self.rate_per_s if self.rate_per_s > 0 else None

    def describe(self) -> str:
        """The counts in one line."""
        failed = f", failed {self.failed}" if self.failed else ""
        if self.cached == self.total:
            return f"all {self.total} clips are in the lake{failed}"
        left = "" if self.left_s is None or self.done == self.total else f", ETA {duration(self.left_s)}"
        skipped = f", skipped {self.skipped}" if self.skipped else ""
        asked = f", {self.tokens}" if self.tokens else ""
        return (
            f"done {self.done} of {self.total} clips (cached {self.cached}), kept {self.kept}, dropped {self.dropped}"
            f"{failed}{skipped}, {self.rate_per_s:.2f} clips/s, busy {100 * self.busy_share:.0f} %{asked}{left}"
        )


class ProgressSink(Protocol):
    """Whoever shows progress."""

    def show(self, progress: dict[Role, AgentProgress]) -> None:
        """Called after every micro-batch, with all agents' counts."""


class BuildProgress:
    """The counts of a running build, updated from many threads; `workers` is how many each agent has."""

    def __init__(self, num_clips: int, workers: Mapping[Role, int], sinks: tuple[ProgressSink, ...]) -> None:
        self._lock = threading.Lock()
        self._showing = threading.Lock()
        self._agents = {role: AgentProgress(total=num_clips, workers=workers[role]) for role in ROLES}
        self._began_s: dict[Role, float] = {}
        self._sinks = sinks

    def begin(self, role: Role) -> None:
        """An agent is about to work on its first clip; rates count from here."""
        with self._lock:
            self._began_s.setdefault(role, time.monotonic())

    def add(
        self,
        role: Role,
        *,
        done: int,
        cached: int = 0,
        failed: int = 0,
        failed_before: int = 0,
        skipped: int = 0,
        kept: int = 0,
        dropped: int = 0,
        busy_s: float = 0.0,
        stored_bytes: int = 0,
        tokens: TokenCount | None = None,
    ) -> None:
        """Add to one agent's counts, with `busy_s` those of one micro-batch, and show them."""
        with self._lock:
            old = self._agents[role]
            began_s = self._began_s.get(role)
            elapsed_s = time.monotonic() - began_s if began_s else 0.0
            is_first = bool(busy_s) and not old.batches.num
            self._agents[role] = AgentProgress(
                total=old.total,
                workers=old.workers,
                done=old.done + done,
                cached=old.cached + cached,
                failed=old.failed + failed,
                failed_before=old.failed_before + failed_before,
                skipped=old.skipped + skipped,
                kept=old.kept + kept,
                dropped=old.dropped + dropped,
                elapsed_s=elapsed_s,
                begin_s=began_s - min(self._began_s.values()) if began_s else 0.0,
                load_s=max(0.0, elapsed_s - busy_s) if is_first else old.load_s,
                stored_bytes=old.stored_bytes + stored_bytes,
                tokens=added(old.tokens, tokens),
                batches=old.batches.plus(done, busy_s) if busy_s else old.batches,
            )
        with self._showing:  # the counts are taken inside, so that what is shown last is the latest
            snapshot = self.snapshot()
            for sink in self._sinks:
                sink.show(snapshot)

    def snapshot(self) -> dict[Role, AgentProgress]:
        """All agents' counts."""
        with self._lock:
            return dict(self._agents)


class Terminal:
    """A picture that lives on the terminal; without one, the lines that changed, every few seconds and at the end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None
        self._lines: dict[str, str] = {}
        self._printed: dict[str, str] = {}
        self._next_line_s = 0.0

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._live:
            self._live.stop()
        else:
            self._print_changed()

    def draw(self, picture: RenderableType, lines: Mapping[str, str]) -> None:
        """Show the state, as a picture or as a line for each name; names that are not given stay as they were."""
        self._lines |= lines
        if self._live:
            self._live.update(picture)
        elif time.monotonic() >= self._next_line_s:
            self._print_changed()

    def _print_changed(self) -> None:
        self._next_line_s = time.monotonic() + LINE_EVERY_S
        for name, line in self._lines.items():
            if self._printed.get(name) != line:
                self._console.print(f"{name:>9}: {line}", highlight=False, soft_wrap=True)
                self._printed[name] = line


class TerminalProgress(Terminal):
    """All agents' counts on the terminal."""

    def show(self, progress: dict[Role, AgentProgress]) -> None:
        """Draw the counts."""
        self.draw(_table(progress), {role: agent.describe() for role, agent in progress.items()})


def _table(progress: dict[Role, AgentProgress]) -> Table:
    table = Table(box=None, header_style="dim")
    asks = any(agent.tokens for agent in progress.values())
    tokens = ("asked", "tokens") if asks else ()
    for title in ("agent", "", "clips", "cached", "kept", "dropped", "failed", "clips/s", "busy", *tokens, "ETA"):
        table.add_column(title, justify="left" if title in ("agent", "") else "right")
    for role, agent in progress.items():
        left = "" if agent.left_s is None else duration(agent.left_s)
        table.add_row(
            role,
            ProgressBar(total=max(agent.total, 1), completed=agent.done, width=24),
            f"{agent.done}/{agent.total}",
            str(agent.cached),
            str(agent.kept),
            str(agent.dropped),
            str(agent.failed),
            f"{agent.rate_per_s:.2f}",
            f"{100 * agent.busy_share:.0f} %",
            *(_tokens(agent.tokens) if asks else ()),
            "done" if agent.done == agent.total else left,
        )
    return table


def _tokens(count: TokenCount | None) -> tuple[str, str]:
    """Requests, and tokens read and written; nothing for an agent that asks no chat server."""
    if count is None:
        return "", ""
    return f"{count.requests:,}", f"{count.prompt_tokens:,} + {count.completion_tokens:,}"
