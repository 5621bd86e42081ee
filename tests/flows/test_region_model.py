"""A VideoRefer model as the reviewer's captioner: what it is asked, in which batches, and a whole build with it."""

import asyncio
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from flows.build import build
from flows.profile_config import load_profile
from flows.region_model import QUESTION, RegionModel, RegionModelConfig
from flows.result import BuildResult
from flows.train_base import load_base
from flows.train_profile import FolderBase
from flows.wiring import UNKNOWN, Site, agent_labels, make_agent, required_checkpoints
from infra.builds import KINDS, read_quarantine, read_samples, verify_build
from infra.lake import Lake
from infra.pool import PoolError
from infra.synthetic import write_clips
from model.answering import answer
from model.request import Message, ObjectRegion, Request, RequestError, Scene

PROFILE = """
name = "tiny"
description = "For a test."
clips_per_unit = 3
[analyzer]
engine = "spacy-chunks+minilm"
[segmenter]
engine = "painted-truth"
[annotator]
engine = "measured-facts"
[reviewer]
engine = "videorefer+chat"
captioner = {{ model = "{model}", max_new_tokens = 8 }}
chat = {{ base_url = "{url}", model = "small" }}
resources = {{ workers = 1, cpus = 0.25, batch_size = 3 }}
[refiner]
engine = "template"
"""
SIDE_PX = 56
Region = tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]


@pytest.fixture(scope="module")
def telling(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with random weights so large that what it says depends on the pixels of the region."""
    network, processor = load_base(FolderBase(kind="model", path=str(tiny.model)), seed=0)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for value in network.parameters():
            if value.dim() > 1:
                value.normal_(std=2 * value[0].numel() ** -0.5, generator=generator)
    folder = tmp_path_factory.mktemp("telling") / "model"
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def region_of(number: int) -> Region:
    """An image of noise and a mask somewhere in it, both known by the number."""
    rng = np.random.default_rng(number)
    mask = np.zeros((SIDE_PX, SIDE_PX), np.bool_)
    top, left = rng.integers(0, SIDE_PX - 20, 2)
    mask[top : top + 20, left : left + 20] = True
    return rng.integers(0, 256, (SIDE_PX, SIDE_PX, 3), np.uint8), mask


def told_alone(folder: Path, regions: Sequence[Region]) -> list[str]:
    """What the model says of each region, asked alone and without `RegionModel`."""
    network, processor = load_base(FolderBase(kind="model", path=str(folder)), seed=0)
    said: list[str] = []
    for image, mask in regions:
        scene = Scene(image[None], (0.0,), (0,), 0.0, 0.0, is_image=True)
        request = Request((Message("user", QUESTION),), scene, (ObjectRegion((0,), (mask,)),))
        said += answer(network.eval(), processor, [request], 8)
    return said


def told(config: RegionModelConfig, regions: Sequence[Region]) -> list[str | BaseException]:
    """What `RegionModel` says of regions that are asked for at once."""

    async def run() -> list[str | BaseException]:
        model = RegionModel(config)
        await model.setup()
        asked = [model.describe(image, mask, str(place)) for place, (image, mask) in enumerate(regions)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        await model.close()
        return found

    return asyncio.run(run())


def config_of(folder: Path, **settings: Any) -> RegionModelConfig:
    return RegionModelConfig(model=str(folder), max_new_tokens=8, **settings)


@pytest.mark.parametrize("per_batch", [1, 3, 8])
def test_regions_asked_for_at_once_get_the_texts_that_each_gets_alone(telling: Path, per_batch: int) -> None:
    regions = [region_of(number) for number in range(8)]
    alone = told_alone(telling, regions)
    assert len(set(alone)) > 4, "texts that do not differ would show no mix-up"
    assert told(config_of(telling, regions_per_batch=per_batch), regions) == alone


def test_the_mask_decides_and_not_the_image_alone(telling: Path) -> None:
    image, mask = region_of(0)
    texts = told(config_of(telling), [(image, mask), (image, ~mask)])
    assert texts[0] != texts[1]


def test_a_region_that_cannot_be_shown_costs_itself_only(telling: Path) -> None:
    regions = [region_of(number) for number in range(3)]
    image, mask = region_of(9)
    *texts, last = told(config_of(telling), [*regions, (image, np.zeros_like(mask))])
    assert texts == told_alone(telling, regions)
    assert isinstance(last, RequestError)
    assert last.reason == "invisible"


def profile_at(tmp_path: Path, model: Path, url: str = "http://127.0.0.1:8000/v1") -> str:
    path = tmp_path / "tiny.toml"
    path.write_text(PROFILE.format(model=model, url=url))
    return str(path)


def test_the_label_names_the_model_by_content_and_the_question(tiny: Any, tmp_path: Path) -> None:
    profile = load_profile(profile_at(tmp_path, tiny.model))
    label = agent_labels(profile)["reviewer"]
    assert label.engine == "videorefer+chat:small"
    (weights,) = label.weights
    assert weights.startswith("model@")
    assert json.loads(label.config_json)["captioner"]["question"] == QUESTION
    assert required_checkpoints(profile) == (str(tiny.model),)
    assert profile.chat("reviewer") is None, "it has workers of its own"
    site = Site(videos_root="", frames_dir=str(tmp_path), identity=UNKNOWN)
    assert make_agent("reviewer", profile, site).label() == label


class Gated(RegionModel):
    """Says the number of the pass, once the test opens the gate."""

    def __init__(self) -> None:
        super().__init__(RegionModelConfig(model="none"))
        self.gate = threading.Event()
        self.passes: list[int] = []

    def _describe(self, requests: Sequence[Request]) -> list[str]:
        self.passes.append(len(requests))
        self.gate.wait(10)
        return [f"pass {len(self.passes)}"] * len(requests)


@pytest.mark.parametrize("goes", ["who leads the batch", "who waits"])
def test_whoever_is_cancelled_the_others_of_the_batch_are_described(goes: str) -> None:
    async def run() -> list[str | BaseException]:
        model = Gated()
        tasks = [asyncio.create_task(model.describe(*region_of(number), str(number))) for number in range(4)]
        await until(lambda: model.passes == [1])
        if goes == "who waits":
            tasks[2].cancel()
        else:
            model.gate.set()
            await tasks[0]
            model.gate.clear()
            await until(lambda: model.passes == [1, 3])
            tasks[1].cancel()
            await asyncio.wait([tasks[1]])
        model.gate.set()
        found = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert await model.describe(*region_of(9), "later") == f"pass {len(model.passes)}"
        assert model.passes == ([1, 2, 1] if goes == "who waits" else [1, 3, 2, 1])
        return found

    found = asyncio.run(run())
    gone = found.pop(2 if goes == "who waits" else 1)
    assert isinstance(gone, asyncio.CancelledError)
    assert all(isinstance(text, str) for text in found)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("waited 10 s in vain")


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.timeout(300)
def test_a_whole_build_whose_reviewer_holds_the_model_and_whose_key_is_mended_in_its_midst(
    server: None, chat_servers: Any, tiny: Any, tmp_path: Path
) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(map(json.dumps, write_clips(tmp_path / "clips", 4, 84))))
    seen: list[str] = []
    served = chat_servers(lambda _: None)

    def reply(payload: Mapping[str, Any]) -> Any:
        if len(payload["messages"]) == 1:
            return served.said("yes")  # the probe
        if not is_mended:
            return served.reply(401, json.dumps({"error": {"message": "no such key"}}))
        asked = json.loads(payload["messages"][1]["content"])
        seen.append(asked["seen"])
        text = "no" if len(seen) == 1 else "yes"
        return served.said(json.dumps({"id": asked["id"], "reason": "It looks so.", "answer": text}))

    served.script = reply
    profile, is_mended = profile_at(tmp_path, tiny.model, served.url), False
    with pytest.raises(PoolError, match=r"refuses model 'small': HTTP 401: no such key$"):
        build(str(source), str(tmp_path / "lake"), profile=profile)
    is_mended = True
    result = build(str(source), str(tmp_path / "lake"), profile=profile)
    served.stop()
    assert isinstance(result, BuildResult)
    lake = Lake(tmp_path / "lake")
    assert verify_build(lake, result.build_id) == []
    assert all(seen)
    samples = [sample for kind in KINDS for sample in read_samples(lake, result.build_id, kind)]
    assert samples
    for sample in samples:
        assert "reviewer=videorefer+chat:small" in sample.provenance.engines
        assert any("model@" in weights for weights in sample.provenance.weights)
    dropped = [entry for entry in read_quarantine(lake, result.build_id) if entry.stage == "reviewer"]
    assert [entry.reason for entry in dropped] == ["other_object"]
    assert repr(seen[0][:200]) in dropped[0].evidence
