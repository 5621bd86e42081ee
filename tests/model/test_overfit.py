"""Eight real samples learnt by heart: a build of the real sample clips trains the embedded pairing, which is saved,
loaded again and asked the eight questions. Run with `-m slow`.
"""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import model.auto  # noqa: F401 - tells transformers our classes
from flows.demo_source import write_demo_source
from infra.builds import latest_build
from infra.lake import Lake
from infra.weights import CATALOGUE, fetch
from model.answering import answer
from model.data.item import TrainItem
from model.data.scene import SceneConfig, request_of
from model.data.sources import ShardSource
from model.embedded import WEIGHTS, build_embedded
from model.training.export import export_pretrained
from model.training.feed import MicroBatch
from model.training.loop import fit
from model.training.settings import AdapterSettings, TrainSettings
from schemas.sample import Kind

NUM_STEPS = 30
NUM_OF_KIND: dict[Kind, int] = {"short_caption": 2, "detailed_caption": 2, "qa": 4}
SETTINGS = TrainSettings(
    parts=("connector", "object_encoder", "adapter"),
    learning_rate=2e-3,
    global_batch_size=8,
    micro_batch_size=8,
    num_steps=NUM_STEPS,
    warmup_share=0.05,
    precision="fp32",
    adapter=AdapterSettings(rank=16, alpha=32.0),
    checkpoint_every_steps=NUM_STEPS,
    log_every_steps=5,
)


class SameEight:
    """A loader that gives one batch again and again."""

    num_samples = 8

    def __init__(self, batch: dict[str, torch.Tensor]) -> None:
        self.batch = batch

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        while True:
            yield MicroBatch(self.batch, 8, 0)


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[TrainItem], Path]:
    """Samples of a fresh build of the demo's real clips, and the root of their videos.

    Of each kind those whose question is asked most often: where a question is asked of several objects or clips, only
    what is seen tells the answers apart.
    """
    fetch([name for name in CATALOGUE if name.startswith("clip-")], print)
    folder = tmp_path_factory.mktemp("real")
    manifest = write_demo_source(folder / "source", [])
    videorefer = Path(sys.executable).with_name("videorefer")
    command = [videorefer, "build", "--source", manifest, "--lake", folder / "lake", "--json"]
    subprocess.run([str(part) for part in command], check=True)
    lake = Lake(str(folder / "lake"))
    build_id = latest_build(lake)
    assert build_id is not None
    chosen: list[TrainItem] = []
    for kind, num in NUM_OF_KIND.items():
        source = ShardSource(lake, build_id, kinds=(kind,))
        items = [source.item(index) for index in range(len(source))]
        often = Counter(question_of(item) for item in items)
        chosen += sorted(items, key=lambda item: (-often[question_of(item)], question_of(item), item.item_id))[:num]
    return chosen, folder / "source"


def question_of(item: TrainItem) -> str:
    return item.messages[0].content


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.timeout(3600)
def test_the_exact_answers_of_eight_real_samples_come_back_from_the_saved_model(
    eight: tuple[list[TrainItem], Path], tmp_path: Path
) -> None:
    torch.set_num_threads(2)
    fetch(WEIGHTS, print)
    items, root = eight
    questions = Counter(map(question_of, items))
    answers = [item.messages[-1].content for item in items]
    assert max(questions.values()) >= 3
    assert len(set(answers)) == 8
    network, processor = build_embedded(seed=0)
    scene = SceneConfig(processor.num_frames, processor.side_px, single_frame_share=0.0, max_masks=4)
    requests = [request_of(item, root, scene, seed=0, epoch=0) for item in items]
    encoded = [processor.encode(request, with_labels=True) for request in requests]
    losses: list[float | None] = []
    loader = SameEight(dict(processor.collate(encoded, "right")))
    fit(network, loader, SETTINGS, tmp_path / "run", lambda step: losses.append(step.loss), lambda: False)
    print(f"loss every 5 of {NUM_STEPS} steps: {losses}")
    export_pretrained(network, processor, tmp_path / "model", torch.float32)
    saved: Any = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    asked = [request._replace(messages=request.messages[:-1]) for request in requests]
    said = answer(saved.eval(), AutoProcessor.from_pretrained(tmp_path / "model"), asked, max_new_tokens=120)
    for item, got in zip(items, said, strict=True):
        print(f"{question_of(item)!r}\n  {got!r}")
    assert said == answers
