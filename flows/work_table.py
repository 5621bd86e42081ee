"""What each agent of a build did and took, as a table for the run's page and the report."""

from collections.abc import Iterable

from flows.grid import Grid, size, with_filled_columns
from infra.work import AgentWork

_TITLES = (
    "agent",
    "clips",
    "busy s",
    "s a clip",
    "stored",
    "requests",
    "cached answers",
    "re-asks",
    "prompt tokens",
    "completion tokens",
)


def work_table(work: Iterable[AgentWork]) -> Grid:
    """One row an agent; those that ask no chat server have nothing under requests and tokens."""
    return with_filled_columns(_TITLES, [_row(entry) for entry in work])


def _row(entry: AgentWork) -> tuple[str, ...]:
    cost = entry.cost
    count = cost.tokens if cost else None
    asked = (count.requests, count.cached, count.reasks, count.prompt_tokens, count.completion_tokens) if count else ()
    return (
        entry.agent,
        f"{entry.clips:,}",
        f"{entry.busy_s:,.1f}",
        f"{entry.s_per_clip:.2f}" if entry.clips else "",
        size(cost.stored_bytes) if cost else "",
        *((f"{n:,}" for n in asked) if asked else ("",) * 5),
    )
