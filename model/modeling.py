"""VideoRefer: a vision tower, a connector for scenes and an object encoder in front of a causal language model.

After the paper's section 3.1. Scene and object tokens take the places of their placeholders in the text; unlike the
official code this works on batches, in training and in generation, with any mixture of scenes and objects in them.
"""

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict, Unpack, cast

import torch
import torch.nn.functional as F  # noqa: N812 - its customary name
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from model.configuration import VideoReferConfig
from model.connector import STCConnector
from model.inputs import MaskBatch, ObjectTokens, SceneIndex, offsets
from model.object_encoder import SpatialTemporalObjectEncoder
from model.vision_tower import VisionTower, build_tower

IGNORED = -100
"""The label of a token that the loss leaves out."""


class Visuals(TypedDict, total=False):
    """Frames, scenes and masks of a batch, as `model.inputs` tells them; what a batch lacks may be left out.

    `pixel_values` (F, 3, height, width) are its distinct frames; `scene_*` are the fields of `SceneIndex`, `mask_*`
    those of `MaskBatch`.
    """

    pixel_values: Tensor
    scene_frame_index: Tensor
    scene_num_frames: Tensor
    mask_weights: Tensor
    mask_frame_index: Tensor
    mask_object_index: Tensor
    mask_boxes: Tensor
    mask_times: Tensor


class Spliced(NamedTuple):
    """What the language model reads: `inputs_embeds` (B, L, hidden) with the visual tokens in them, and
    `attention_mask` (B, L) long, 0 at padding and at placeholders that got no token.
    """

    inputs_embeds: Tensor
    attention_mask: Tensor


_VISUALS = tuple(Visuals.__annotations__)
_REMEDY = (
    "encode the requests with a processor made for this model's configuration (model.processing.processor_for), and "
    "keep the number of tokens where the object encoder is replaced"
)


@dataclass
class VideoReferOutput(ModelOutput):
    """`logits` (B, L, vocabulary) if no labels were given; else `loss`, `loss_sum` and `num_labels`, all scalars.

    `loss_sum` is the sum over the `num_labels` answer tokens, `loss` what is to be minimised. `hidden_states` and
    `attentions` are the language model's, where they were asked for.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    loss_sum: Tensor | None = None
    num_labels: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class VideoReferForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """The whole network, for training (`forward` with labels), for scores (`forward`) and for answers (`generate`).

    `vision_tower` is a `model.vision_tower.VisionTower`, `object_encoder` a `model.object_encoder.ObjectEncoder`,
    `language_model` any causal language model that takes `inputs_embeds` and `position_ids`. The object encoder may be
    replaced by any module that follows its Protocol, for instance by one around it that changes its tokens.
    """

    config_class = VideoReferConfig
    main_input_name = "input_ids"
    input_modalities = ("video", "image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: VideoReferConfig) -> None:
        super().__init__(config)
        tower = build_tower(config.vision_config, config.vision_select_layer)
        width, hidden = cast("int", tower.hidden_size), config.text_config.hidden_size
        time, rows, columns = config.connector_stride
        self.vision_tower = tower
        self.connector = STCConnector(width, hidden, config.connector_depth, (time, rows, columns))
        self.object_encoder = SpatialTemporalObjectEncoder(
            width, hidden, config.num_object_tokens, config.object_position, config.paper_exact
        )
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        # The connector and the object encoder index and add across their layers, so each stays on one device; a block
        # of the connector is what a wrapper by names takes for a unit.
        ours = (self.connector, self.object_encoder, *self.connector.blocks())
        self._no_split_modules = [
            *dict.fromkeys(type(module).__name__ for module in ours),
            *(name for module in tower.modules() for name in getattr(module, "_no_split_modules", None) or ()),
        ]
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Our parts start as their layers have it; tower and language model know their own way."""
        if (reset := getattr(module, "reset_parameters", None)) is not None:
            reset()

    def get_input_embeddings(self) -> nn.Module:
        """The language model's table of embeddings."""
        return cast("nn.Module", self.language_model.get_input_embeddings())

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        return cast("nn.Module", self.language_model.get_output_embeddings())

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's table of embeddings, as `resize_token_embeddings` does."""
        self.language_model.set_input_embeddings(value)

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the language model's head."""
        self.language_model.set_output_embeddings(new_embeddings)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        inputs_embeds: None = None,
        use_cache: bool | None = None,  # noqa: ARG002 - callers of any model may name it
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **visuals: Unpack[Visuals],
    ) -> VideoReferOutput | tuple[Any, ...]:
        """Logits of a batch, or with labels its loss alone: the head then reads only positions that predict an answer.

        `input_ids` (B, L) long with expanded placeholders, padded on either side; `attention_mask` (B, L), all ones if
        left out; `labels` (B, L) long, -100 where nothing is learnt. The loss is the mean over labels, 0 without any;
        `num_items_in_batch` divides their sum instead, for a mean over more than this batch. The others are what
        wrappers such as PEFT hand to any model: `output_attentions` and `output_hidden_states` go to the language
        model, `return_dict=False` gives a tuple, `use_cache` has no effect (`generate` keeps a cache), and
        `inputs_embeds` must be None. Raises ValueError for embeddings, and where the placeholders and the visual tokens
        differ in number.
        """
        if inputs_embeds is not None:
            raise ValueError("got inputs_embeds; scenes and objects find their places by ids: give input_ids")
        spliced = self.splice(input_ids, attention_mask, **visuals)
        wishes = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        asked = {name: value for name, value in wishes.items() if value is not None}
        if labels is None:
            read = self._read(spliced, 0, **asked)
            output = VideoReferOutput(logits=read.logits)
        else:
            labels = labels.masked_fill(self._is_placeholder(input_ids), IGNORED)
            targets, predictors = _targets(labels, spliced.attention_mask)
            read = self._read(spliced, predictors, **asked)
            loss_sum = F.cross_entropy(read.logits.float(), targets, reduction="sum")
            num_labels = predictors.sum()
            divisor = num_labels.clamp(min=1) if num_items_in_batch is None else num_items_in_batch
            output = VideoReferOutput(loss=loss_sum / divisor, loss_sum=loss_sum, num_labels=num_labels)
        output.hidden_states, output.attentions = read.get("hidden_states"), read.get("attentions")
        return output.to_tuple() if return_dict is False else output

    @torch.no_grad()
    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs_and_settings: Any) -> Tensor:
        """Ids of the new tokens only, (B, at most max_new_tokens) long, padded on the right.

        Takes what `forward` takes, padded on the left, and whatever the language model's `generate` takes, such as
        `max_new_tokens` or `generation_config`; this model's own generation configuration is the default. Raises
        ValueError for a batch padded on the right.
        """
        visuals = {name: inputs_and_settings.pop(name) for name in _VISUALS if name in inputs_and_settings}
        spliced = self.splice(input_ids, attention_mask, **cast("Visuals", visuals))
        if not spliced.attention_mask[:, -1].all():
            raise ValueError("got a batch padded on the right, which cannot be continued: collate it with left padding")
        settings = copy.deepcopy(inputs_and_settings.pop("generation_config", None) or self.generation_config)
        others = settings.update(**inputs_and_settings)
        return cast("Tensor", self.language_model.generate(generation_config=settings, **spliced._asdict(), **others))

    def splice(self, input_ids: Tensor, attention_mask: Tensor | None = None, **visuals: Unpack[Visuals]) -> Spliced:
        """The embedded text of a batch, its placeholders filled in order by the tokens of its scenes and objects.

        Takes what `forward` takes and raises what it raises. In training a batch without scenes or objects passes
        connector and object encoder all the same, to no effect, so that all ranks of a split model run the same parts.
        """
        if unknown := set(visuals).difference(_VISUALS):
            raise TypeError(f"got {sorted(unknown)}; visual inputs are {', '.join(_VISUALS)}")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        is_scene = (input_ids == self.config.video_token_id) | (input_ids == self.config.image_token_id)
        is_region = input_ids == self.config.region_token_id
        features = self._features(visuals)
        scene_tokens = self._scene_tokens(features, visuals)
        masks = _mask_batch(features, visuals)
        object_tokens = self._object_tokens(features, masks)
        if (places := int(is_scene.sum())) != len(scene_tokens):
            raise ValueError(f"got {places} places of <video>, <image> for {len(scene_tokens)} scene tokens; {_REMEDY}")
        is_filled = is_region.masked_scatter(is_region, self._filled(int(is_region.sum()), masks, object_tokens))
        embeds = self.get_input_embeddings()(input_ids.masked_fill(is_scene | is_region, 0))
        # With no place to fill the empty tokens still stay in the graph, so that the parts they are from get gradients.
        embeds = embeds.masked_scatter(is_scene[..., None], scene_tokens.to(embeds.dtype))
        embeds = embeds.masked_scatter(is_filled[..., None], object_tokens.tokens.to(embeds.dtype))
        return Spliced(embeds, attention_mask.masked_fill(is_region & ~is_filled, 0))

    def _features(self, visuals: Visuals) -> Tensor:
        """Features (F, h, w, D) of the batch's frames; in training of one black frame where there is none."""
        tower = cast("VisionTower", self.vision_tower)
        like = next(self.vision_tower.parameters())
        learns = any(parameter.requires_grad for parameter in self.vision_tower.parameters())
        pixels = visuals.get("pixel_values")
        if pixels is None or not len(pixels):
            if not (self.training and learns):
                return like.new_zeros(int(self.training), *tower.grid_size, tower.hidden_size)
            side = self.config.vision_config.image_size
            pixels = like.new_zeros(1, 3, *((side, side) if isinstance(side, int) else side))
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
            return tower(pixels.to(like.dtype))

    def _scene_tokens(self, features: Tensor, visuals: Visuals) -> Tensor:
        """Tokens of all scenes, one scene after another, (S, hidden)."""
        features = features.to(next(self.connector.parameters()).dtype)
        num_frames = visuals.get("scene_num_frames")
        if num_frames is not None and len(num_frames):
            tokens: Tensor = self.connector(features, SceneIndex(visuals["scene_frame_index"], num_frames))[0]
            return tokens
        if not self.training:
            return features.new_zeros(0, self.config.text_config.hidden_size)
        index = torch.zeros(1, dtype=torch.long, device=features.device)
        return cast("Tensor", self.connector(features, SceneIndex(index, index + 1))[0][:0])

    def _object_tokens(self, features: Tensor, masks: MaskBatch) -> ObjectTokens:
        if not self.training and not masks.num_objects:
            return ObjectTokens(features.new_zeros(0, self.config.text_config.hidden_size), masks.object_index)
        return cast("ObjectTokens", self.object_encoder(features, masks))

    def _filled(self, places: int, masks: MaskBatch, object_tokens: ObjectTokens) -> Tensor:
        """Which places of `<region>` get a token, (places,) bool.

        All do, except with `paper_exact`, where equal similarities can leave an object fewer tokens than the
        processor, which knows only the number of masks, gave it places.
        """
        tokens, rooms = object_tokens.num_tokens, object_tokens.num_tokens
        if self.config.paper_exact:
            rooms = torch.bincount(masks.object_index).clamp(max=self.config.num_object_tokens)
        if int(rooms.sum()) != places or len(rooms) != len(tokens) or bool((tokens > rooms).any()):
            raise ValueError(f"got {places} places of <region> for {int(tokens.sum())} object tokens; {_REMEDY}")
        within = torch.arange(places, device=rooms.device) - offsets(rooms).repeat_interleave(rooms)
        return within < tokens.repeat_interleave(rooms)

    def _is_placeholder(self, input_ids: Tensor) -> Tensor:
        names = (self.config.video_token_id, self.config.image_token_id, self.config.region_token_id)
        return torch.isin(input_ids, torch.tensor(names, device=input_ids.device))

    def _read(self, spliced: Spliced, keep: Tensor | int, **asked: bool) -> Any:
        """The language model's output; its `logits` are those at all positions for 0, (B, L, vocabulary), or those
        where `keep` (B, L) bool, (N, vocabulary).
        """
        return self.language_model(
            **spliced._asdict(),
            position_ids=positions(spliced.attention_mask),
            use_cache=False,
            logits_to_keep=keep,
            return_dict=True,
            **asked,
        )


def positions(attention_mask: Tensor) -> Tensor:
    """The place of each token among those attended, (B, L) long; that of a token without attention has no meaning."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


def _mask_batch(features: Tensor, visuals: Visuals) -> MaskBatch:
    """The masks of a batch, none where it has none; `features` (F, h, w, D) give grid and device."""
    if "mask_weights" in visuals:
        return MaskBatch(*(cast("dict[str, Tensor]", visuals)[f"mask_{name}"] for name in MaskBatch._fields))
    index = torch.zeros(0, dtype=torch.long, device=features.device)
    numbers = torch.zeros(0, device=features.device)
    return MaskBatch(numbers.reshape(0, *features.shape[1:3]), index, index, numbers.reshape(0, 4), numbers)


def _targets(labels: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """The labels that are learnt, (N,) long, and where they are predicted, (B, L) bool with N set.

    A token is predicted from the last attended position before it, which is not its neighbour where a placeholder
    between them got no token; a label that is not attended itself, or has nothing before it, is not learnt.
    """
    places = torch.arange(labels.shape[1], device=labels.device)
    attended = attention_mask > 0
    last = torch.where(attended, places, -1).cummax(1).values
    before = F.pad(last[:, :-1], (1, 0), value=-1)
    learnt = (labels != IGNORED) & attended & (before >= 0)
    rows, columns = learnt.nonzero(as_tuple=True)
    predictors = torch.zeros_like(learnt)
    predictors[rows, before[rows, columns]] = True
    return labels[learnt], predictors
