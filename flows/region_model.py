"""Descriptions of regions by a VideoRefer model of our own, for the reviewer; torch is loaded in `setup`."""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from agents.engines.torch_run import CheckpointConfig, Halving, placement
from agents.marked_frames import Mask
from flows.train_base import load_base
from flows.train_profile import FolderBase
from infra.chat import JsonObject
from infra.checkpoints import checkpoint_folder, checkpoint_label
from infra.video import Image
from model.request import Message, ObjectRegion, Request, RequestError, Scene
from schemas.sample import REGION

QUESTION = f"Please describe {REGION} in the image in detail."


class RegionModelConfig(CheckpointConfig):
    """Which model describes regions: the folder `model` that a training wrote, or the official checkpoint's."""

    max_new_tokens: int = Field(default=96, ge=1)
    """Longest description; a longer one is cut off."""
    regions_per_batch: int = Field(default=8, ge=1)
    """Regions in one pass at most; halved where a GPU has no room for them."""


class _Asked(NamedTuple):
    """A region, and who waits for its description."""

    request: Request
    said: asyncio.Future[str]


class RegionModel:
    """`agents.chat_reviewer.RegionCaptioner`: the model gets the frame as an image, and the mask as its region.

    Unlike a chat model that sees, it is shown no outline, as object tokens tell it which pixels are meant. Regions that
    wait while a batch is at work make the next one. Answers are greedy.
    """

    name = "videorefer"

    def __init__(self, config: RegionModelConfig) -> None:
        self._config = config
        self._batches = Halving(config.regions_per_batch)
        self._waiting: list[_Asked] = []
        self._at_work = asyncio.Lock()
        self._model: Any = None
        self._processor: Any = None

    def weights(self) -> tuple[str, ...]:
        """The model folder's name and content; raises CheckpointError where it is not there."""
        return (checkpoint_label(self._config.model),)

    def settings(self) -> JsonObject:
        """Number format, length and question."""
        dtype, max_new_tokens = self._config.dtype, self._config.max_new_tokens
        return {"dtype": dtype, "max_new_tokens": max_new_tokens, "question": QUESTION}

    async def setup(self) -> None:
        """Load the model; raises CheckpointError and TrainingError where its folder holds none."""
        await asyncio.to_thread(self._load)

    async def describe(self, image: Image, mask: Mask, region_id: str) -> str:  # noqa: ARG002 - nothing is echoed in one process
        """What the model says; raises `model.request.RequestError` where nothing of the mask is left to be shown."""
        said: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Asked(_request(image, mask), said))
        try:
            async with self._at_work:
                if not said.done():
                    await self._answer_waiting()
            return await said
        finally:
            said.cancel()  # so that nobody answers who is not asked any more

    async def probe(self) -> None:
        """Nothing to ask: the model is in this process."""

    async def close(self) -> None:
        """Free the model."""
        self._model = self._processor = None

    def _load(self) -> None:
        from transformers.utils import logging

        logging.disable_progress_bar()
        base = FolderBase(kind="model", path=str(checkpoint_folder(self._config.model)))
        network, self._processor = load_base(base, seed=0)
        device, dtype = placement(self._config)
        self._model = network.to(device, dtype).eval()

    async def _answer_waiting(self) -> None:
        """Settle all that wait; where this is cancelled, they wait on, and the next of them settles them."""
        batch = [asked for asked in self._waiting if not asked.said.done()]
        self._waiting = []
        try:
            await self._answer(batch)
        finally:
            self._waiting[:0] = [asked for asked in batch if not asked.said.done()]

    async def _answer(self, batch: Sequence[_Asked]) -> None:
        """Settle every one of the batch; a region that cannot be shown costs itself only."""
        try:
            texts = await asyncio.to_thread(self._describe, [asked.request for asked in batch])
        except Exception as error:  # noqa: BLE001 - told to whoever waits
            if len(batch) > 1 and isinstance(error, RequestError):
                for asked in batch:
                    await self._answer([asked])
                return
            for asked in batch:
                if not asked.said.done():
                    asked.said.set_exception(error)
            return
        for asked, text in zip(batch, texts, strict=True):
            if not asked.said.done():
                asked.said.set_result(text)

    def _describe(self, requests: Sequence[Request]) -> list[str]:
        from model.answering import answer

        def run(batch: Sequence[Request]) -> list[str]:
            return answer(self._model, self._processor, batch, self._config.max_new_tokens)

        return [text for texts in self._batches.batches(requests, run) for text in texts]


def _request(image: Image, mask: Mask) -> Request:
    scene = Scene(np.asarray(image)[None], (0.0,), (0,), 0.0, 0.0, is_image=True)
    return Request((Message("user", QUESTION),), scene, (ObjectRegion((0,), (mask,)),))
