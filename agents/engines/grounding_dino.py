"""Grounding DINO: boxes for any nouns, all of a clip's nouns in one pass, and frames of many clips in one batch."""

import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from agents.base import Detection
from agents.engines.torch_run import CheckpointConfig, Halving, placement
from infra.checkpoints import checkpoint_folder, checkpoint_label
from infra.video import Image
from schemas.record import BoxXyxyPx, Share

_ENDS_OF_A_PHRASE = re.compile(r"[.?\s]+")
"""A full stop or a question mark ends a phrase for the model, so neither may stand inside a noun."""


class GroundingDinoConfig(CheckpointConfig):
    """Which boxes count, and how much is worked on at once."""

    min_score: Share = 0.35
    """Boxes that fit a noun less are dropped (0.35 in the official demonstration)."""
    max_boxes: int = Field(default=8, ge=1)
    """At most this many boxes of one noun on one frame, best first."""
    frames_per_batch: int = Field(default=4, ge=1)
    """Frames, of any clips, in one pass at most; halved where a GPU has no room for them."""


class Prompt(NamedTuple):
    """A text of several phrases, `[start, end)` of each one's characters in it, and the nouns that each stands for."""

    text: str
    spans: tuple[tuple[int, int], ...]
    nouns: tuple[tuple[str, ...], ...]


class Look(NamedTuple):
    """An image, the `position`-th of those asked about, and a text with nouns to look for on it."""

    position: int
    image: Image
    prompt: Prompt


class GroundingDino:
    """Boxes for nouns by `GroundingDinoForObjectDetection` (Liu et al. 2023).

    The model scores each of its boxes against each token of the text. A noun's score is the mean over its own tokens,
    which are known by their place in the text, as in the official demonstration with `token_spans`; so no noun is
    guessed from decoded words, and one box may be found for two nouns ("man", "person"). Phrases do not attend to one
    another, hence neither their order nor their company decides.

    A pass takes images with a text each. Shorter texts are padded, which the model masks throughout. Images are not
    padded to one size: the windows of the Swin backbone know no mask, so that an image's features would depend on the
    images beside it; hence a pass takes images of one size. What is found on an image differs by its company only as
    floating-point sums of other shapes do.

    In bfloat16 the weights stay float32 and torch's
    autocast decides by operation, as boxes computed in bfloat16 throughout are rounded to some pixels.
    """

    name = "grounding-dino"

    def __init__(self, config: GroundingDinoConfig) -> None:
        self.config = config
        self._batches = Halving(config.frames_per_batch)
        self._model: Any = None
        self._dtype: Any = None
        self._tokenizer: Any = None
        self._processor: Any = None

    def weights(self) -> tuple[str, ...]:
        """The model folder's name and content; raises CheckpointError where it is not there."""
        return (checkpoint_label(self.config.model),)

    def setup(self) -> None:
        """Load model, tokenizer and image processor; raises CheckpointError where their folder is not there."""
        import torch
        from transformers import AutoTokenizer, GroundingDinoForObjectDetection, GroundingDinoImageProcessorPil

        folder = checkpoint_folder(self.config.model)
        device, self._dtype = placement(self.config)
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._processor = GroundingDinoImageProcessorPil.from_pretrained(folder, local_files_only=True)
        self._model = GroundingDinoForObjectDetection.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
        self._model.eval().to(device)

    def detect_nouns(self, asked: Sequence[tuple[Image, Sequence[str]]]) -> list[list[Detection]]:
        """For each image the boxes of its nouns, best first; `detector_class` is the noun as given.

        Boxes are clipped to the image, in its pixels. A noun without a letter or digit is not looked for.
        """
        by_size: dict[tuple[int, ...], list[Look]] = {}
        for position, (image, nouns) in enumerate(asked):
            looks = by_size.setdefault(image.shape, [])
            looks += (Look(position, image, prompt) for prompt in self._prompts(nouns))
        found: list[list[Detection]] = [[] for _ in asked]
        for looks in by_size.values():
            batches = self._batches.batches(looks, self._run)
            for look, boxes in zip(looks, chain.from_iterable(batches), strict=True):
                found[look.position] += boxes
        return [sorted(boxes, key=lambda box: -box.score) for boxes in found]

    def _prompts(self, nouns: Sequence[str]) -> Iterator[Prompt]:
        """One prompt; more only where the nouns have more tokens than the model's text may have."""
        limit = self._model.config.max_text_len - 2  # for [CLS] and [SEP]
        phrases = phrases_of(nouns)
        some: list[str] = []
        used = 0
        for phrase in phrases:
            count = len(self._tokenizer(f"{phrase}.", add_special_tokens=False).input_ids)
            if some and used + count > limit:
                yield prompt_of({phrase: phrases[phrase] for phrase in some})
                some, used = [], 0
            some.append(phrase)
            used += count
        if some:
            yield prompt_of({phrase: phrases[phrase] for phrase in some})

    def _run(self, looks: Sequence[Look]) -> list[list[Detection]]:
        """The boxes of each look; their images are of one size."""
        import torch

        encoded = self._tokenizer(
            [look.prompt.text for look in looks],
            return_offsets_mapping=True,
            padding=True,
            truncation=True,
            max_length=self._model.config.max_text_len,
            return_tensors="pt",
        )
        offsets = encoded.pop("offset_mapping").tolist()
        text = {name: ids.to(self._model.device) for name, ids in encoded.items()}
        pixels = self._processor(images=[look.image for look in looks], return_tensors="pt").to(self._model.device)
        mixed = torch.autocast(self._model.device.type, self._dtype, enabled=self._dtype is not torch.float32)
        with torch.inference_mode(), mixed:
            outputs = self._model(**text, pixel_values=pixels["pixel_values"], pixel_mask=pixels["pixel_mask"])
        logits, boxes = outputs.logits.float().cpu().numpy(), outputs.pred_boxes.float().cpu().numpy()
        found: list[list[Detection]] = []
        for look, own_logits, own_boxes, own_offsets in zip(looks, logits, boxes, offsets, strict=True):
            scores = noun_scores(own_logits, token_owners(own_offsets, look.prompt.spans))
            height_px, width_px = look.image.shape[:2]
            found.append(to_detections(scores, own_boxes, look.prompt, height_px, width_px, self.config))
        return found


def phrases_of(nouns: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The nouns as the model is told them (lower case, no sentence marks), each with the nouns it stands for."""
    phrases: dict[str, tuple[str, ...]] = {}
    for noun in dict.fromkeys(nouns):
        phrase = _ENDS_OF_A_PHRASE.sub(" ", noun.lower()).strip()
        if any(char.isalnum() for char in phrase):
            phrases[phrase] = (*phrases.get(phrase, ()), noun)
    return phrases


def prompt_of(phrases: dict[str, tuple[str, ...]]) -> Prompt:
    """`dog. red car.` and where each phrase stands in it."""
    text = ". ".join(phrases) + "."
    spans: list[tuple[int, int]] = []
    start = 0
    for phrase in phrases:
        spans.append((start, start + len(phrase)))
        start += len(phrase) + 2
    return Prompt(text, tuple(spans), tuple(phrases.values()))


def token_owners(offsets: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    """(phrases, tokens): which tokens stand for which phrase, from the characters `[start, end)` of both.

    Tokens without characters ([CLS], [SEP], [PAD]) and the stops between phrases belong to none.
    """
    owners = np.zeros((len(spans), len(offsets)), dtype=np.bool_)
    for row, (first, last) in enumerate(spans):
        owners[row] = [first <= start < end <= last for start, end in offsets]
    return owners


def noun_scores(logits: npt.NDArray[np.float32], owners: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """(boxes, phrases) scores 0 to 1: the mean over a phrase's tokens of the sigmoid of their logits.

    `logits` is (boxes, text length), padded with minus infinity behind the text. A phrase of which no token was left
    by the tokenizer's cut has score 0.
    """
    with np.errstate(over="ignore"):
        per_token = 1 / (1 + np.exp(-logits[:, : owners.shape[1]].astype(np.float64)))
    counts = owners.sum(axis=1)
    scores: npt.NDArray[np.float64] = per_token @ (owners / np.maximum(counts, 1)[:, None]).T
    return scores


def to_detections(
    scores: npt.NDArray[np.float64],
    boxes: npt.NDArray[np.float32],
    prompt: Prompt,
    height_px: int,
    width_px: int,
    config: GroundingDinoConfig,
) -> list[Detection]:
    """Detections of one image from (boxes, phrases) scores and boxes as centre and size in shares of the image.

    Boxes without a pixel inside the image are dropped.
    """
    found: list[Detection] = []
    for column, nouns in enumerate(prompt.nouns):
        best = np.argsort(-scores[:, column], kind="stable")
        solid = ((float(scores[row, column]), to_xyxy_px(boxes[row], height_px, width_px)) for row in best)
        good = [(score, box) for score, box in solid if score > config.min_score and _is_solid(box)]
        found += [
            Detection(detector_class=noun, score=score, box_xyxy_px=box)
            for noun in nouns
            for score, box in good[: config.max_boxes]
        ]
    return found


def to_xyxy_px(box: npt.NDArray[np.float32], height_px: int, width_px: int) -> BoxXyxyPx:
    """Left, top, right, bottom in pixels, clipped to the image, of centre x, centre y, width, height in its shares."""
    x, y, w, h = (float(value) for value in box)
    corners = ((x - w / 2) * width_px, (y - h / 2) * height_px, (x + w / 2) * width_px, (y + h / 2) * height_px)
    x1, x2 = (min(max(value, 0.0), float(width_px)) for value in corners[::2])
    y1, y2 = (min(max(value, 0.0), float(height_px)) for value in corners[1::2])
    return (x1, y1, x2, y2)


def _is_solid(box: BoxXyxyPx) -> bool:
    return box[2] - box[0] >= 1 and box[3] - box[1] >= 1
