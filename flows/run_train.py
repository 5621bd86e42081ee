"""One training from the command line: what is refused before anything starts, its progress, and how it ends."""

from pathlib import Path

from rich.console import Console

from flows.cli_common import INTERRUPTED, fail
from flows.run_flow import flow_on_page
from flows.train_base import load_base
from flows.train_profile import FolderBase, shipped_train_profiles
from flows.train_record import MODEL_FOLDER, TrainRecord
from infra.lake import Lake
from schemas.record import Record


def run_train(
    lake: str,
    build_id: str | None,
    videos: Path | None,
    out: Path,
    profile: str,
    init: Path | None,
    ray: str | None,
    num_steps: int | None,
    as_json: bool,
) -> TrainRecord:
    """Train; what is finished already is left as it is. One that is stopped by a signal ends the process."""
    from flows.train_plan import plan_training  # loads torch

    profile = profile if profile in shipped_train_profiles() else str(Path(profile).absolute())
    lake = lake if "://" in lake else str(Path(lake).absolute())
    out = out.absolute()
    asked = (lake, str(out), build_id, _absolute(videos), profile, _absolute(init), num_steps)
    record = plan_training(*asked)
    console = Console(stderr=True, quiet=as_json)
    if record.outcome is not None:
        console.print("finished already: nothing to do", highlight=False)
    else:
        try:
            with flow_on_page(console):
                from flows.train import train
                from flows.train_progress import WATCHERS, TrainTerminal

                with TrainTerminal(console) as terminal, WATCHERS.watched_by(terminal):
                    result = train(*asked, ray)
        except KeyboardInterrupt:  # Ctrl-C, or SIGTERM by way of `flows.names`
            fail(f"stopped; the same command goes on from step {_last_step(out)}", INTERRUPTED)
        assert isinstance(result, TrainRecord)
        record = result
    return record


def _last_step(out: Path) -> int:
    """The step of the newest checkpoint; 0 where there is none."""
    from model.training.checkpoint import latest_checkpoint, read_info

    found = latest_checkpoint(out)
    return 0 if found is None else read_info(found).progress.step


def print_training(record: TrainRecord, out: Path) -> None:
    """Say on stdout what came of a training."""
    Console().print(record.summary(out.absolute()), highlight=False, soft_wrap=True)


class Asked(Record):
    """A question of the build that was put to a trained model; `answer` is the model's, `expected` the build's."""

    label: str
    sample_id: str
    question: str
    answer: str
    expected: str

    def describe(self) -> str:
        """A few lines for a terminal."""
        return f"asked ({self.label}): {self.question}\n  model: {self.answer!r}\n  build: {self.expected!r}"


def ask_sample(record: TrainRecord, out: Path) -> Asked:
    """Put one question of the build, of a held-out video where there is one, to the model that was trained on it."""
    from model.answering import answer
    from model.data.scene import request_of, scene_config
    from model.data.sources import ShardSource

    assert record.outcome is not None
    model, processor = load_base(FolderBase(kind="model", path=str(out / MODEL_FOLDER)), seed=0)
    lake, root = Lake(record.lake), Path(record.videos_root)
    try:
        source = ShardSource(lake, record.run.build_id, root=root, split="held_out")
    except ValueError:  # no video of a small build need be held out
        source = ShardSource(lake, record.run.build_id, root=root)
    item = source.item(0)
    *question, expected = item.messages
    asked = item._replace(messages=tuple(question))
    request = request_of(asked, root, scene_config(processor), seed=0, epoch=0)
    (said,) = answer(model.eval(), processor, (request,), max_new_tokens=32)
    text = question[-1].content.replace("<video>", "").strip()
    return Asked(
        label=record.outcome.label, sample_id=item.item_id, question=text, answer=said, expected=expected.content
    )


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())
