"""Following the metrics of a training that goes back to its last checkpoint."""

from pathlib import Path

from flows.train_progress import MetricsFollower
from model.training.metrics import METRICS_FILE, MetricsLog, StepMetrics


def row(step: int, loss: float = 1.0) -> StepMetrics:
    numbers = dict.fromkeys(("tokens_per_s", "samples_per_s", "data_wait", "mfu", "eta_s", "epoch"), 0.0)
    return StepMetrics(
        step=step, num_steps=9, loss=loss, learning_rate=0.1, grad_norm=1.0, peak="", memory_peak_bytes=1,
        bad_samples=0, skipped_steps=0, **numbers,
    )  # fmt: skip


class Shown:
    """What a sink was shown."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def show(self, rows: list[StepMetrics]) -> None:
        self.steps += [row.step for row in rows]


def test_a_run_that_lost_all_its_rows_is_followed_from_its_first_row_on(tmp_path: Path) -> None:
    sink = Shown()
    follower = MetricsFollower(tmp_path / METRICS_FILE, (sink,))
    log = MetricsLog(tmp_path, 0)
    log.write(row(1))
    log.write(row(2))
    follower.look()
    log.close()
    again = MetricsLog(tmp_path, 0)
    follower.look()
    follower.look()  # nothing was written since
    assert [one.step for one in follower.rows] == [1, 2]
    again.write(row(1, loss=0.5))
    follower.look()
    again.close()
    assert [(one.step, one.loss) for one in follower.rows] == [(1, 0.5)]
    assert sink.steps == [1, 2, 1]


def test_a_line_is_taken_once_it_is_whole_and_what_a_checkpoint_cut_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    follower = MetricsFollower(path, ())
    follower.look()
    whole = row(1).model_dump_json() + "\n"
    path.write_text(whole + row(2).model_dump_json()[:20])
    follower.look()
    assert [one.step for one in follower.rows] == [1]
    path.write_text(whole + row(2).model_dump_json() + "\n" + row(3).model_dump_json() + "\n")
    follower.look()
    MetricsLog(tmp_path, 1).close()
    with path.open("a") as file:
        file.write(row(2, loss=0.5).model_dump_json() + "\n")
    follower.look()
    assert [(one.step, one.loss) for one in follower.rows] == [(1, 1.0), (2, 0.5)]
