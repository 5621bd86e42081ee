"""The training flow on a tiny network and a build made by hand, through a real Prefect server and a real Ray."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from prefect.client.orchestration import get_client
from prefect.exceptions import CancelledRun
from prefect.states import Cancelling
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerFast, SiglipImageProcessorPil

import model.auto  # noqa: F401 - tells transformers our classes
from flows.train import train
from flows.train_plan import plan_training
from flows.train_record import TrainingError, TrainRecord, read_record
from infra.ray_cluster import start_ray
from model.configuration import VideoReferConfig
from model.modeling import VideoReferForConditionalGeneration
from model.processing import processor_for
from model.training.metrics import StepMetrics

pytestmark = [pytest.mark.weights, pytest.mark.timeout(300)]

CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def byte_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIAL[2], pad_token=SPECIAL[0], chat_template=CHAT
    )
    fast.add_special_tokens({"additional_special_tokens": [SPECIAL[1]]})
    fast.save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved VideoRefer of a few thousand weights."""
    folder = tmp_path_factory.mktemp("tiny")
    vision = {"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    text = {"model_type": "qwen2", "vocab_size": 259, "hidden_size": 16, "intermediate_size": 16}
    config = VideoReferConfig(
        vision_config=vision | {"num_attention_heads": 2, "image_size": 28, "patch_size": 14},
        text_config=text | {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2},
        num_frames=2,
        connector_depth=1,
    )
    images = SiglipImageProcessorPil(size={"height": 28, "width": 28})
    processor = processor_for(config, byte_tokenizer(folder / "tokenizer"), images, 512)
    torch.manual_seed(0)
    VideoReferForConditionalGeneration(config).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def ray_here(server: None) -> Iterator[None]:
    with start_ray(None, 2):
        yield


@pytest.fixture
def built(ray_here: None, lake_by_hand: Any) -> Any:
    lake_by_hand.publish()
    return lake_by_hand


def profile_file(folder: Path, tiny: Path, num_steps: int = 4, workers: int = 1, **settings: object) -> str:
    chosen = {"learning_rate": 1e-3, "global_batch_size": 2, "num_steps": num_steps} | settings
    lines = [f"{name} = {value}" for name, value in chosen.items()]
    path = folder / f"tiny-{time.monotonic_ns()}.toml"
    path.write_text(
        'name = "tiny"\ndescription = "For a test."\n'
        f'[base]\nkind = "model"\npath = "{tiny}"\n'
        '[settings]\nparts = ["connector", "object_encoder", "language_model"]\nprecision = "fp32"\n'
        "log_every_steps = 1\n" + "\n".join(lines) + f"\n[data]\ndecode_cache_mib = 0\n[workers]\nnum = {workers}\n"
    )
    return str(path)


def steps_of(out: Path) -> list[StepMetrics]:
    return [StepMetrics.model_validate_json(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def when_logged(out: Path, step: int, act: Any) -> threading.Thread:
    """Do something, in a thread, once a step is in the metrics."""

    def wait() -> None:
        while not (out / "metrics.jsonl").exists() or not any(row.step >= step for row in steps_of(out)):
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def rank_pids() -> set[int]:
    """Ranks that descend from this process; others on the machine may train too, and are not ours to kill."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        pid = int(path.parent.name)
        try:
            if path.read_bytes().startswith(b"ray::RayTrainWorker") and is_ours(pid):
                found.add(pid)
        except OSError:  # it ended meanwhile
            continue
    return found


def is_ours(pid: int) -> bool:
    while pid > 1 and pid != os.getpid():
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid == os.getpid()


def test_a_build_becomes_a_model_that_loads_and_says_what_it_is(built: Any, tiny: Path, tmp_path: Path) -> None:
    out, profile = tmp_path / "out", profile_file(tmp_path, tiny)
    record = train(built.lake.root, str(out), profile=profile)
    assert isinstance(record, TrainRecord)
    assert record.outcome is not None
    assert record == read_record(out)
    assert (record.outcome.label, record.outcome.num_samples, record.outcome.num_bad_samples) == ("4 steps", 8, 0)
    assert [row.step for row in steps_of(out)] == [1, 2, 3, 4]

    trained = AutoModelForImageTextToText.from_pretrained(out / "model").state_dict()
    before = AutoModelForImageTextToText.from_pretrained(tiny).state_dict()
    moved = {name.split(".")[0] for name, value in trained.items() if not torch.equal(value, before[name])}
    assert moved == {"connector", "object_encoder", "language_model"}
    assert AutoProcessor.from_pretrained(out / "model").num_frames == 2

    card = (out / "model" / "README.md").read_text()
    assert f"Build `{record.run.build_id}`" in card
    assert "Training label: **4 steps**" in card
    assert "import model.auto" in card

    curves = EventAccumulator(str(out / "tensorboard")).Reload()
    assert [event.step for event in curves.Scalars("train/loss")] == [1, 2, 3, 4]

    # the same again is finished; another is refused, and what differs is named
    asked = (built.lake.root, str(out), None, None)
    assert plan_training(*asked, profile, None, None).outcome == record.outcome
    with pytest.raises(TrainingError, match=r"settings\.learning_rate was 0\.001 and is 0\.5"):
        plan_training(*asked, profile_file(tmp_path, tiny, learning_rate=0.5), None, None)
    with pytest.raises(TrainingError, match=r"settings\.num_steps was 4 and is 9"):
        plan_training(*asked, profile, None, 9)


@pytest.mark.slow
def test_a_rank_that_is_killed_costs_no_step(built: Any, tiny: Path, tmp_path: Path) -> None:
    calm, hurt = tmp_path / "calm", tmp_path / "hurt"
    profile = profile_file(tmp_path, tiny, num_steps=60, workers=2, checkpoint_every_steps=10)
    train(built.lake.root, str(calm), profile=profile)
    before: set[int] = set()
    after: set[int] = set()

    def kill_one() -> None:
        before.update(rank_pids())
        os.kill(min(before), signal.SIGKILL)
        while not (new := rank_pids() - before):
            time.sleep(0.05)
        after.update(new)

    watcher = when_logged(hurt, 15, kill_one)
    train(built.lake.root, str(hurt), profile=profile)
    watcher.join(10)
    assert len(before) == 2
    assert after  # the kill came before the end, and ranks were started again
    assert [row.step for row in steps_of(hurt)] == list(range(1, 61))
    assert [row.loss for row in steps_of(hurt)] == [row.loss for row in steps_of(calm)]
    weights = [(out / "model" / "model.safetensors").read_bytes() for out in (calm, hurt)]
    assert weights[0] == weights[1]


def test_cancel_on_the_page_leaves_a_checkpoint_and_no_model(built: Any, tiny: Path, tmp_path: Path) -> None:
    out, profile = tmp_path / "out", profile_file(tmp_path, tiny, num_steps=3000)

    def cancel() -> None:
        with get_client(sync_client=True) as client:
            (run,) = [run for run in client.read_flow_runs() if run.parameters.get("out") == str(out)]
            client.set_flow_run_state(run.id, Cancelling())

    when_logged(out, 5, cancel)
    with pytest.raises(CancelledRun, match="cancelled in the UI"):
        train(built.lake.root, str(out), profile=profile)
    (checkpoint,) = (out / "checkpoints").glob("step-*")
    step = json.loads((checkpoint / "checkpoint.json").read_text())["progress"]["step"]
    assert 5 <= step < 3000
    assert read_record(out).outcome is None  # type: ignore[union-attr]
    assert not (out / "model").exists()
