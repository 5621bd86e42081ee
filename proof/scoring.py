"""Which option a model finds likeliest, with its object tokens, with them put out of work, and without the video."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Self

import numpy as np
from items import Item
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

import model.auto  # noqa: F401 - registers the classes
from model.answering import option_scores
from model.data.scene import SceneConfig, request_of, scene_config
from model.data.sources import sample_item
from model.inputs import MaskBatch, ObjectTokens
from model.modeling import VideoReferForConditionalGeneration
from model.processing import VideoReferProcessor
from model.request import REGION, VIDEO, Message, Request
from schemas.record import Record
from schemas.sample import Sample

Arm = Literal["object tokens", "zeroed", "permuted", "text only"]
ARMS: tuple[Arm, ...] = ("object tokens", "zeroed", "permuted", "text only")
MAX_MASKS = 8
"""Masked frames of an object, as in the proof's training."""
_DRAWS = 10_000


class Zeroed(nn.Module):
    """An object encoder whose tokens are zeros."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, features: Tensor, masks: MaskBatch) -> ObjectTokens:
        """As many tokens as the encoder gives."""
        found = self.encoder(features, masks)
        return found._replace(tokens=found.tokens * 0)


class Figure(Record):
    """A share with its 95 % interval, by bootstrap over clips, whose items are not independent."""

    mean: float
    low: float
    high: float

    def percent(self) -> str:
        """As read in a table."""
        return f"{100 * self.mean:.1f} ({100 * self.low:.1f} to {100 * self.high:.1f})"


class Answerer:
    """A trained model that is asked items of one build."""

    def __init__(
        self, model: VideoReferForConditionalGeneration, processor: VideoReferProcessor, root: Path, config: SceneConfig
    ) -> None:
        self._model, self._processor = model, processor
        self._root, self._config = root, config

    @classmethod
    def load(cls, model_dir: Path, root: Path) -> Self:
        """The model of a folder, shown each object by as many masked frames as in its training."""
        model = AutoModelForImageTextToText.from_pretrained(model_dir).eval()
        processor = AutoProcessor.from_pretrained(model_dir)
        return cls(model, processor, root, scene_config(processor, single_frame_share=0.0, max_masks=MAX_MASKS))

    def is_right(self, item: Item, arm: Arm) -> bool:
        """Whether the right option is the likeliest."""
        if arm == "zeroed":
            with _zeroed(self._model):
                return self._first_wins(self._request(item.sample), item.options)
        request = self._request(item.sample)
        if arm == "permuted":  # the question on this object, with the tokens of another one of the clip
            request = self._request(item.others[0])._replace(messages=request.messages)
        if arm == "text only":
            text = request.messages[0].content.replace(VIDEO, "").replace(REGION, "the object").strip()
            request = Request((Message("user", text),), None, ())
        return self._first_wins(request, item.options)

    def _request(self, sample: Sample) -> Request:
        request = request_of(sample_item(sample, "held out"), self._root, self._config, seed=0, epoch=0)
        return request._replace(messages=request.messages[:1])

    def _first_wins(self, request: Request, options: Sequence[str]) -> bool:
        scores = [score.log_probability for score in option_scores(self._model, self._processor, request, options)]
        return all(scores[0] > other for other in scores[1:])


@contextmanager
def _zeroed(model: VideoReferForConditionalGeneration) -> Iterator[None]:
    encoder = model.object_encoder
    model.object_encoder = Zeroed(encoder)
    try:
        yield
    finally:
        model.object_encoder = encoder


def figure(values: np.ndarray[tuple[int], np.dtype[np.float64]], clips: Sequence[str]) -> Figure:
    """Mean of one value per item, and its interval over clips drawn with replacement."""
    _, of_item = np.unique(clips, return_inverse=True)
    sums, counts = np.bincount(of_item, values), np.bincount(of_item)
    drawn = np.random.default_rng(0).integers(len(counts), size=(_DRAWS, len(counts)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975)).tolist()
    return Figure(mean=float(values.mean()), low=low, high=high)
