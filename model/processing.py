"""Requests to tensors: the text with its placeholders expanded, the frames, and the objects' masks on the tower's grid.

The processor alone knows how many visual tokens a request has, so that the length budget counts them: the official
loader cuts the text to 2048 tokens before it puts some 1352 visual ones in, and so cuts neither here nor there.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Self

import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import SizeDict

from model.configuration import VideoReferConfig
from model.connector import num_scene_tokens
from model.inputs import offsets
from model.prompt import PLACEHOLDERS, chat_pieces, checked_messages
from model.request import IMAGE, REGION, VIDEO, Message, Request, RequestError, Scene
from model.scene_masks import NO_FRAME, scene_masks
from model.vision_tower import build_tower

IGNORE_INDEX = -100
"""Label of a position that is not learnt, as torch's cross entropy has it."""

_EXACT = ("mask_weights", "mask_boxes", "mask_times")
"""What stays float32 whatever the format of the model."""

_STEPS = (
    "__call__",
    "preprocess",
    "_standardize_kwargs",
    "_preprocess_image_like_inputs",
    "_prepare_image_like_inputs",
    "process_image",
    "convert_to_rgb",
    "_preprocess",
    "rescale",
    "normalize",
)
"""Methods of a PIL image processor that say what its call does to a frame, but for `resize`, which is called."""


class Encoded(NamedTuple):
    """One request as tensors, without a batch dimension; places and numbers count from this request's first.

    `input_ids` and `labels` (L,) long, labels -100 but on answers; `pixel_values` (F, 3, S, S) float32, only frames
    that the scene or a mask uses; `scene_frame_index` (T,) and `scene_num_frames` (1,) long, both empty for text alone;
    `mask_weights` (M, h, w), `mask_boxes` (M, 4) and `mask_times` (M,) float32, `mask_frame_index` and
    `mask_object_index` (M,) long, as in `model.inputs.MaskBatch`. `num_cut` is how many tokens of the last answer,
    its end among them, found no room.
    """

    input_ids: Tensor
    labels: Tensor
    pixel_values: Tensor
    scene_frame_index: Tensor
    scene_num_frames: Tensor
    mask_weights: Tensor
    mask_frame_index: Tensor
    mask_object_index: Tensor
    mask_boxes: Tensor
    mask_times: Tensor
    num_cut: int


class Batch(BatchFeature):
    """The model's forward arguments by name."""

    data: dict[str, Tensor]

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """In place, to a device, a format, or both; of a format only `pixel_values` take notice.

        Masks, boxes and times stay float32: a few pixels of a frame are less than a step of bfloat16, and the model
        pools in float32.
        """
        names = list(self.data)
        exact = {name: self.data.pop(name) for name in _EXACT if name in self.data}
        super().to(*args, **kwargs)
        device, non_blocking = self.data["input_ids"].device, kwargs.get("non_blocking", False)
        moved = self.data | {name: value.to(device, non_blocking=non_blocking) for name, value in exact.items()}
        self.data = {name: moved[name] for name in names}
        return self


class VideoReferProcessor(ProcessorMixin):
    """Makes a VideoRefer model's inputs; saved and loaded beside it, with everything its results depend on.

    `image_processor` is any of transformers that resizes frames to one square and neither crops nor pads, since masks
    are laid on the whole frame. `tokenizer` needs a chat template; `<video>`, `<image>` and `<region>` are added to it
    here where it lacks them, with ids after its own, for which the model needs no embedding row. `grid_size` (rows,
    columns), `connector_stride`, `num_object_tokens` and `paper_exact` are those of the model, and `num_frames` is how
    many frames a reader should show a scene by (`processor_for` takes all of them from the configuration). An image is
    one frame; with `paper_exact` it is shown `num_frames` times, as by the architecture that the official model was
    trained from, and so takes as many tokens as a video.
    `max_length` is the most tokens a request may have, visual ones among them; None sets no bound.
    """

    def __init__(
        self,
        image_processor: BaseImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        grid_size: Sequence[int],
        num_frames: int,
        connector_stride: Sequence[int],
        num_object_tokens: int,
        paper_exact: bool,
        max_length: int | None,
    ) -> None:
        self.side_px = _side_px(image_processor)
        added = [AddedToken(text, special=True, normalized=False) for text in PLACEHOLDERS]
        tokenizer.add_tokens(added, special_tokens=True)
        rows, columns = grid_size
        time, row, column = connector_stride
        self.grid_size = (rows, columns)
        self.num_frames = num_frames
        self.connector_stride = (time, row, column)
        self.num_object_tokens = num_object_tokens
        self.paper_exact = paper_exact
        self.max_length = max_length
        super().__init__(image_processor, tokenizer)

    @property
    def model_input_names(self) -> list[str]:
        """Names of what `collate` gives, which are the model's forward arguments."""
        return ["input_ids", "attention_mask", *Encoded._fields[1:-1]]

    def placeholder_id(self, text: str) -> int:
        """The token id of `<video>`, `<image>` or `<region>`."""
        token_id: int = self.tokenizer.convert_tokens_to_ids(text)
        return token_id

    def __call__(
        self, requests: Request | Sequence[Request] = (), max_length: int | None = None, **others: object
    ) -> Batch:
        """The batch that `generate` takes: requests that end with a question, padded on the left, without labels.

        One request alone is a batch of one. Raises as `encode` does, and TypeError for anything but requests, such as
        the `text` and `images` of other processors.
        """
        requests = [requests] if isinstance(requests, Request) else requests
        if others or not requests or not all(isinstance(request, Request) for request in requests):
            got = ", ".join(others) or ", ".join(sorted({type(one).__name__ for one in requests})) or "nothing"
            raise TypeError(
                f"got {got}; the processor takes requests, one model.request.Request or several, and max_length: put "
                "text, frames and masks into a Request"
            )
        batch = self.collate([self.encode(request, False, max_length) for request in requests], "left")
        del batch["labels"]
        return batch

    def encode(self, request: Request, with_labels: bool, max_length: int | None = None) -> Encoded:
        """One request as tensors; with labels it ends with an answer, without with a question.

        `max_length` stands for the processor's own. What is over it is cut off the last answer, of which at least one
        token must fit. Raises `RequestError` for what cannot be shown (its `reason` says which), ValueError for a
        tokenizer whose chat template cannot be used.
        """
        messages = checked_messages(request, with_labels)
        masks = scene_masks(request, self.grid_size, self.paper_exact)
        tokens_per_object = masks.per_object.clamp(max=self.num_object_tokens)
        shown = self._shown(request.scene)
        input_ids, labels = self._expanded(messages, self._num_scene_tokens(len(shown)), tokens_per_object)
        input_ids, labels, num_cut = _fitted(input_ids, labels, self.max_length if max_length is None else max_length)
        used = torch.cat([shown, masks.frames[masks.frames != NO_FRAME]]).unique()
        return Encoded(
            input_ids,
            labels,
            self._pixels(request.scene, used),
            scene_frame_index=torch.searchsorted(used, shown),
            scene_num_frames=torch.tensor([len(shown)] if request.scene else [], dtype=torch.long),
            mask_weights=masks.weights,
            mask_frame_index=torch.searchsorted(used, masks.frames),  # NO_FRAME, below all, gives the first
            mask_object_index=torch.arange(len(masks.per_object)).repeat_interleave(masks.per_object),
            mask_boxes=masks.boxes,
            mask_times=masks.times,
            num_cut=num_cut,
        )

    def collate(self, encoded: Sequence[Encoded], padding_side: Literal["left", "right"]) -> Batch:
        """Several requests as one batch of the model's forward arguments, of B requests at most L tokens long.

        `input_ids`, `attention_mask` and `labels` (B, L) long, padded on `padding_side`; the visual parts one after
        another, their places and numbers shifted to count through the batch. A request without frames or objects adds
        none, and where none has any, the tensors are empty along their first axis.
        """
        length = max(len(one.input_ids) for one in encoded)
        pad_id = self.tokenizer.pad_token_id or 0  # masked, so any id will do
        frame_shift = offsets(torch.tensor([len(one.pixel_values) for one in encoded]))
        object_shift = offsets(torch.tensor([len(one.mask_object_index.unique()) for one in encoded]))
        shifted = [
            one._replace(
                scene_frame_index=one.scene_frame_index + frames,
                mask_frame_index=one.mask_frame_index + frames,
                mask_object_index=one.mask_object_index + objects,
            )
            for one, frames, objects in zip(encoded, frame_shift, object_shift, strict=True)
        ]
        batch = {
            "input_ids": _padded([one.input_ids for one in encoded], length, pad_id, padding_side),
            "attention_mask": _padded([torch.ones_like(one.input_ids) for one in encoded], length, 0, padding_side),
            "labels": _padded([one.labels for one in encoded], length, IGNORE_INDEX, padding_side),
        }
        batch |= {name: torch.cat([getattr(one, name) for one in shifted]) for name in Encoded._fields[2:-1]}
        return Batch(batch)

    def _expanded(
        self, messages: Sequence[Message], num_scene_tokens: int, tokens_per_object: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Ids of the chat with each placeholder standing as often as it has visual tokens, and labels; both (L,)."""
        pieces = chat_pieces(self.tokenizer, messages)
        short_ids = torch.tensor([token_id for piece in pieces for token_id in piece.token_ids])
        learnt = torch.cat([torch.arange(len(piece.token_ids)) < piece.num_learnt for piece in pieces])
        if messages[-1].role == "assistant":  # nothing is to follow the end of the last answer
            end = int(learnt.nonzero()[-1]) + 1
            short_ids, learnt = short_ids[:end], learnt[:end]
        is_region = torch.isin(short_ids, torch.tensor(self.placeholder_id(REGION)))
        scene_ids = torch.tensor([self.placeholder_id(VIDEO), self.placeholder_id(IMAGE)])
        is_scene = torch.isin(short_ids, scene_ids)
        got, asked = (int(is_scene.sum()), int(is_region.sum())), (int(num_scene_tokens > 0), len(tokens_per_object))
        if got != asked:
            raise ValueError(
                f"the chat template made {got} scene tags and regions of {asked}; use one that keeps the turns' text"
            )
        repeats = torch.ones_like(short_ids)
        repeats[is_scene] = num_scene_tokens
        repeats[is_region] = tokens_per_object
        input_ids = short_ids.repeat_interleave(repeats)
        return input_ids, torch.where(learnt.repeat_interleave(repeats), input_ids, IGNORE_INDEX)

    def _shown(self, scene: Scene | None) -> Tensor:
        """The places in the scene's frames of those that show it, one after another, (T,) long."""
        times = self.num_frames if self.paper_exact and scene is not None and scene.is_image else 1
        return torch.tensor(scene.shown * times if scene else [], dtype=torch.long)

    def _num_scene_tokens(self, num_shown: int) -> int:
        return num_scene_tokens(num_shown, self.grid_size, self.connector_stride) if num_shown else 0

    def _pixels(self, scene: Scene | None, places: Tensor) -> Tensor:
        """The frames at `places`, (F, 3, S, S) float32."""
        if scene is None:
            return torch.empty(0, 3, self.side_px, self.side_px)
        frames = [scene.frames[place] for place in places.tolist()]
        if not _is_plain(self.image_processor):
            made = self.image_processor(frames, input_data_format="channels_last", return_tensors="pt")
            return torch.as_tensor(made.pixel_values, dtype=torch.float32)
        size = SizeDict(height=self.side_px, width=self.side_px)
        scale, offset = _scale_and_offset(self.image_processor)
        pixels = torch.empty(len(frames), 3, self.side_px, self.side_px)
        for into, frame in zip(pixels, frames, strict=True):  # one at a time stays in the processor's cache
            resized = self.image_processor.resize(
                frame.transpose(2, 0, 1), size=size, resample=self.image_processor.resample
            )
            into.copy_(torch.from_numpy(resized)).mul_(scale).add_(offset)
        return pixels


def processor_for(
    config: VideoReferConfig,
    tokenizer: PreTrainedTokenizerBase,
    image_processor: BaseImageProcessor,
    max_length: int | None,
) -> VideoReferProcessor:
    """A processor that agrees with the model of `config`.

    This is the one place where the two are tied: the placeholders are added to `tokenizer` and their ids written into
    `config`, so call it before the model is used. Raises ValueError where the image processor does not give the
    pictures that the tower takes.
    """
    with torch.device("meta"):  # only its shape is asked for
        tower: Any = build_tower(config.vision_config, config.vision_select_layer)
    processor = VideoReferProcessor(
        image_processor,
        tokenizer,
        tower.grid_size,
        config.num_frames,
        config.connector_stride,
        config.num_object_tokens,
        config.paper_exact,
        max_length,
    )
    if config.vision_config.image_size not in (processor.side_px, [processor.side_px] * 2):
        raise ValueError(
            f"the image processor gives {processor.side_px} px, the tower takes {config.vision_config.image_size} px; "
            "set the image processor's size"
        )
    config.video_token_id = processor.placeholder_id(VIDEO)
    config.image_token_id = processor.placeholder_id(IMAGE)
    config.region_token_id = processor.placeholder_id(REGION)
    return processor


def _is_plain(image_processor: BaseImageProcessor) -> bool:
    """Whether its call does to a frame what `PilBackend` does: its own resize, then a factor, a mean and a deviation.

    Asked for each request, since its attributes may be set at any time.
    """
    alters = any(getattr(image_processor, name, None) for name in ("do_center_crop", "do_pad"))
    return (
        isinstance(image_processor, PilBackend)
        and all(getattr(type(image_processor), name) is getattr(PilBackend, name) for name in _STEPS)
        and bool(image_processor.do_resize)
        and not alters
    )


def _scale_and_offset(image_processor: Any) -> tuple[Tensor, Tensor]:
    """What rescaling and normalising multiply a value of 0..255 by and then add, each (3, 1, 1) float32.

    Within float32's rounding of the two steps one after the other, in less than a tenth of their time.
    """
    scale, offset = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    if image_processor.do_rescale:
        scale = scale * image_processor.rescale_factor
    if image_processor.do_normalize:
        std = torch.tensor(image_processor.image_std, dtype=torch.float64)
        scale, offset = scale / std, -torch.tensor(image_processor.image_mean, dtype=torch.float64) / std
    return scale.to(torch.float32).view(3, 1, 1), offset.to(torch.float32).expand(3).view(3, 1, 1)


def _side_px(image_processor: BaseImageProcessor) -> int:
    """Side of the square that whole frames are resized to; ValueError where they would be cropped, padded or kept."""
    size = dict(image_processor.size)
    height, width = size.get("height"), size.get("width")
    alters = [name for name in ("do_center_crop", "do_pad") if getattr(image_processor, name, None)]
    if not image_processor.do_resize or height is None or height != width or alters:
        raise ValueError(
            f"the image processor has do_resize {image_processor.do_resize}, size {size} and {alters or 'no'} further "
            "steps; allowed is a plain resize to a square: set size to one height and width, and crop and pad to False"
        )
    return int(height)


def _fitted(input_ids: Tensor, labels: Tensor, max_length: int | None) -> tuple[Tensor, Tensor, int]:
    """Ids and labels (L,) with the last answer cut to `max_length`, and how many of its tokens were cut.

    Questions and earlier answers are never cut.
    """
    if max_length is None or len(input_ids) <= max_length:
        return input_ids, labels, 0
    num_question = int((labels == IGNORE_INDEX).nonzero()[-1]) + 1
    least = num_question + (num_question < len(input_ids))
    if least > max_length:
        raise RequestError(
            "too_long",
            f"text and visual tokens before the last answer are {num_question}, and at least {least} must fit; allowed "
            f"are {max_length}: shorten the question, show fewer frames, or raise max_length",
        )
    return input_ids[:max_length], labels[:max_length], len(input_ids) - max_length


def _padded(rows: list[Tensor], length: int, value: int, side: Literal["left", "right"]) -> Tensor:
    return torch.stack(
        [
            torch.nn.functional.pad(
                row, (length - len(row), 0) if side == "left" else (0, length - len(row)), value=value
            )
            for row in rows
        ]
    )
