"""What questions to chat servers cost, told apart by who asked, however many ask at once."""

import contextvars

from schemas.record import Record


class TokenCount(Record):
    """What an agent's questions cost; `requests` went to the server, `cached` did not, `reasks` are among both.

    Tokens are those of `requests`, as far as the server tells.
    """

    requests: int = 0
    cached: int = 0
    reasks: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: "TokenCount") -> "TokenCount":
        mine, theirs = self.model_dump(), other.model_dump()
        return TokenCount(**{name: mine[name] + theirs[name] for name in mine})

    def __str__(self) -> str:
        """`40 requests (3 more cached, 2 re-asks), 9,120 + 840 tokens`, those read before those written."""
        return (
            f"{self.requests:,} requests ({self.cached:,} more cached, {self.reasks:,} re-asks), "
            f"{self.prompt_tokens:,} + {self.completion_tokens:,} tokens"
        )


class TokenMeter:
    """Adds up what is spent while it is the one that counts; `count` is None as long as nothing was asked."""

    def __init__(self) -> None:
        self.count: TokenCount | None = None


_METER: contextvars.ContextVar[TokenMeter | None] = contextvars.ContextVar("meter", default=None)


def start_meter() -> TokenMeter:
    """Count from now on what this task, and the tasks that it starts, spend; a meter before it counts no more."""
    meter = TokenMeter()
    _METER.set(meter)
    return meter


def spend(count: TokenCount) -> None:
    """Add to the meter of whoever asked, if one runs."""
    if (meter := _METER.get()) is not None:
        meter.count = added(meter.count, count)


def added(one: TokenCount | None, other: TokenCount | None) -> TokenCount | None:
    """Both together, None where neither asked anything."""
    return one + other if one and other else one or other
