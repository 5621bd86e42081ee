"""TensorBoard's files of a training, written by the driver from the metrics file."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from model.training.metrics import StepMetrics

TAGS = ("loss", "learning_rate", "grad_norm", "tokens_per_s", "samples_per_s", "data_wait", "mfu", "memory_peak_bytes")
"""Fields of `StepMetrics` that become curves under `train/`."""


class TensorBoardSink:
    """Writes curves to a folder.

    A driver begins with all rows there are, so each of its files is whole; TensorBoard forgets earlier ones from the
    step on which a session starts, which is how steps that are done again replace those before.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._writer: Any = EventFileWriter(str(folder))
        self._last_step: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._writer.close()

    def show(self, rows: Sequence[StepMetrics]) -> None:
        """Write rows and have them on disk."""
        for row in rows:
            if self._last_step is None or row.step <= self._last_step:
                log = SessionLog(status=SessionLog.START)
                self._add(Event(step=0 if self._last_step is None else row.step, session_log=log))
            values = [
                Summary.Value(tag=f"train/{tag}", simple_value=v)
                for tag in TAGS
                if (v := getattr(row, tag)) is not None
            ]
            self._add(Event(step=row.step, summary=Summary(value=values)))
            self._last_step = row.step
        self._writer.flush()

    def _add(self, event: Any) -> None:
        event.wall_time = time.time()
        self._writer.add_event(event)
