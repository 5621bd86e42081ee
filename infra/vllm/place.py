"""Where servers of one model answer: what passes between whoever starts them and whoever asks them."""

from collections.abc import Sequence
from typing import Protocol

from schemas.record import Record


class Place(Record):
    """Where a server answers, and the key without which it does not."""

    url: str
    """As http://10.0.0.7:41234; the chat completions are below `/v1`."""
    key: str = ""


class Replicas(Protocol):
    """Servers of one model as they are now; asked from any thread."""

    @property
    def name(self) -> str:
        """What people call them."""

    @property
    def patience_s(self) -> float:
        """How long requests wait while no server answers."""

    def places(self) -> Sequence[Place | None]:
        """Where each answers; None for one that does not run at the moment. There are always as many."""

    def failure(self) -> str:
        """Why none will ever answer again; empty as long as one may."""
