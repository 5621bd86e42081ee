"""Configuration of a VideoRefer model: a vision tower, a connector, an object encoder and a causal language model."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from model.efficientnet_lite import EfficientNetLiteConfig

SIGLIP_SO400M_384 = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}
QWEN2_7B = {
    "vocab_size": 151646,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}


@strict
class VideoReferConfig(PreTrainedConfig):
    """Everything that shapes the network; the defaults are the sizes of VideoRefer-7B (its `config.json`, paper 3.2).

    `vision_config` and `text_config` are configurations, or their dicts with a `model_type`, of any vision tower that
    `model.vision_tower` knows and of any causal language model. `vision_select_layer` is the hidden state taken from a
    transformer tower, -2 the last but one. `num_frames` show a scene. `connector_depth` blocks stand before and after
    the connector's strided convolution, whose kernel and stride (time, rows, columns) are `connector_stride`.
    `num_object_tokens` is u of the temporal token merge: the most tokens that stand for one object. `object_position`
    adds embedded box and time to object tokens. `paper_exact` keeps the official arithmetic: masks sampled at grid
    points and binarised, ties in the merge joined, absent frames as zeros, an image as `num_frames` equal frames; it
    excludes `object_position`.

    The token ids are those of the placeholders. They are all set or all -1, which stands for a network whose
    tokenizer is not known yet; they need no row in the language model's embedding. A value that is not allowed raises
    `huggingface_hub.errors.StrictDataclassError`, on construction and before saving.
    """

    model_type = "videorefer"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "vision_config": SubConfigSpec(AutoConfig, model_type="siglip_vision_model", init_kwargs=SIGLIP_SO400M_384),
        "text_config": SubConfigSpec(AutoConfig, model_type="qwen2", init_kwargs=QWEN2_7B),
    }

    vision_config: Any = None
    text_config: Any = None
    vision_select_layer: int = -2
    num_frames: int = 16
    connector_depth: int = 4
    connector_stride: list[int] | tuple[int, ...] = (2, 2, 2)
    num_object_tokens: int = 4
    object_position: bool = True
    paper_exact: bool = False
    video_token_id: int = -1
    image_token_id: int = -1
    region_token_id: int = -1

    def __post_init__(self, **kwargs: Any) -> None:
        self.connector_stride = tuple(self.connector_stride)
        super().__post_init__(**kwargs)

    def validate_sizes(self) -> None:
        """Counts are positive, and there is a stride for time, rows and columns each."""
        for name, least in (("num_frames", 1), ("num_object_tokens", 1), ("connector_depth", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"got {name} {getattr(self, name)}; allowed is {least} or more")
        if len(self.connector_stride) != 3 or min(self.connector_stride) < 1:
            raise ValueError(
                f"got connector_stride {self.connector_stride}; allowed are three from 1 up: time, rows, columns"
            )

    def validate_object_encoder(self) -> None:
        """Box and time are ours, so that the official arithmetic excludes them."""
        if self.paper_exact and self.object_position:
            raise ValueError(
                "got paper_exact with object_position, which the official encoder lacks: set object_position to false"
            )

    def validate_placeholders(self) -> None:
        """The three ids differ from one another, unless none is known."""
        ids = (self.video_token_id, self.image_token_id, self.region_token_id)
        if set(ids) != {-1} and (len(set(ids)) < 3 or min(ids) < 0):
            raise ValueError(
                f"got video_token_id, image_token_id, region_token_id {ids}; allowed are three different ids of the "
                "tokenizer, or -1 for all of them while it is not known"
            )


AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)
