"""Reads the published VideoRefer-7B checkpoint, whose names and configuration are those of the official code.

Names and shapes are facts of the checkpoint; ours differ in grouping only, so every tensor is taken as it is.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import Qwen2Config, SiglipVisionConfig

from model.configuration import SIGLIP_SO400M_384, VideoReferConfig
from model.modeling import VideoReferForConditionalGeneration

_Value = TypeVar("_Value")

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_MAX_NAMES = 5
"""How many keys an error names."""

_ALLOWED = {
    "model_type": "videorefer_qwen2",
    "mm_projector_type": "stc_connector_v35",
    "mm_region_encoder_type": "pooling",
}
_REQUIRED = ("model_type", "mm_hidden_size", "mm_vision_select_layer", "num_frames", "vocab_size", "hidden_size")
_CONNECTOR_DEPTH = 4
_CONNECTOR_STRIDE = (2, 2, 2)
_NUM_OBJECT_TOKENS = 4

_TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_theta",
    "tie_word_embeddings",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)

_PREFIXES = {
    "vision_tower.model.": "model.vision_tower.vision_tower.vision_model.",
    "object_encoder.mlp.": "model.region_encoder.feat_linear.",
    "connector.sampler.": "model.mm_projector.sampler.0.",
    "connector.readout.": "model.mm_projector.readout.",
    "language_model.": "",
}
_STAGES = {"before": "s1", "after": "s2"}
_BLOCK_PARTS = {
    "conv1": "conv1.conv",
    "norm1": "conv1.bn",
    "conv2": "conv2.conv",
    "norm2": "conv2.bn",
    "squeeze_excite.fc1": "se.fc1",
    "squeeze_excite.fc2": "se.fc2",
    "conv3": "conv3.conv",
    "norm3": "conv3.bn",
    "shortcut.0": "downsample.conv",
    "shortcut.1": "downsample.bn",
}


class CheckpointError(ValueError):
    """A folder is not a VideoRefer-7B checkpoint: its configuration, names or shapes are others."""


def config_from_official(
    official: Mapping[str, Any], paper_exact: bool = True, vision_config: SiglipVisionConfig | None = None
) -> VideoReferConfig:
    """Our configuration for the official `config.json`.

    That file names its vision tower without its sizes; they are those of SigLIP so400m-patch14-384 unless
    `vision_config` gives others. `object_position` is off: the checkpoint has no weights for it. The last row of the
    embedding belongs to `<region>`, which the official code added; `<video>` and `<image>` get ids beyond it. Raises
    CheckpointError for another architecture.
    """
    if absent := [name for name in _REQUIRED if name not in official]:
        raise CheckpointError(f"config.json lacks {', '.join(absent)}; take that of the official checkpoint")
    for name, allowed in _ALLOWED.items():
        if official.get(name, allowed) != allowed:
            raise CheckpointError(f"got {name} {official[name]!r} in config.json; only {allowed!r} can be read")
    vision = vision_config or SiglipVisionConfig(**(SIGLIP_SO400M_384 | {"vision_use_head": True}))
    if official["mm_hidden_size"] != vision.hidden_size:
        raise CheckpointError(
            f"got mm_hidden_size {official['mm_hidden_size']} in config.json and a vision tower of width "
            f"{vision.hidden_size}; give the vision_config that the checkpoint was trained with"
        )
    text = Qwen2Config(**{name: official[name] for name in _TEXT_FIELDS if name in official})
    return VideoReferConfig(
        vision_config=vision,
        text_config=text,
        vision_select_layer=official["mm_vision_select_layer"],
        num_frames=official["num_frames"],
        connector_depth=_CONNECTOR_DEPTH,
        connector_stride=_CONNECTOR_STRIDE,
        num_object_tokens=_NUM_OBJECT_TOKENS,
        object_position=False,
        paper_exact=paper_exact,
        region_token_id=text.vocab_size - 1,
        video_token_id=text.vocab_size,
        image_token_id=text.vocab_size + 1,
    )


def official_shapes(config: VideoReferConfig) -> dict[str, torch.Size]:
    """Every name that the official checkpoint of this configuration has, with its shape; allocates nothing."""
    return {_official_name(name): tensor.shape for name, tensor in _meta_state(config).items()}


def convert_official(state: Mapping[str, _Value], config: VideoReferConfig) -> dict[str, _Value]:
    """The values of `state`, tensors or places of them, under the names of our model of `config`.

    Raises CheckpointError that names what is missing or left over: all of ours must be there, and nothing else.
    """
    official_by_ours = {name: _official_name(name) for name in _meta_state(config)}
    wanted = set(official_by_ours.values())
    problems = [
        f"{len(names)} {how}: {', '.join(names[:_MAX_NAMES])}{', ...' if len(names) > _MAX_NAMES else ''}"
        for how, names in (("missing", sorted(wanted - state.keys())), ("unknown", sorted(state.keys() - wanted)))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"the weights are not those of this configuration, {'; '.join(problems)}; take all files of one official "
            "checkpoint, complete and with its own config.json"
        )
    return {ours: state[official] for ours, official in official_by_ours.items()}


def load_official(
    folder: Path,
    paper_exact: bool = True,
    vision_config: SiglipVisionConfig | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> VideoReferForConditionalGeneration:
    """The model of an official checkpoint folder: `config.json` and safetensors, in one file or several with an index.

    The files are mapped into memory, so weights that are in `dtype` already (bf16 in the published one) are held once,
    others are converted tensor by tensor. They must not change while the model lives.
    Raises CheckpointError where a file, a name or a shape is not as expected.
    """
    config = config_from_official(_read_json(folder / "config.json"), paper_exact, vision_config)
    file_of = convert_official(_file_of_each(folder), config)
    shapes = {name: tensor.shape for name, tensor in _meta_state(config).items()}
    state: dict[str, Tensor] = {}
    for file in sorted(set(file_of.values())):
        with safe_open(file, framework="pt") as tensors:
            for ours in (name for name, holder in file_of.items() if holder == file):
                state[ours] = tensors.get_tensor(_official_name(ours))
    if wrong := [name for name, tensor in state.items() if tensor.shape != shapes[name]]:
        first = wrong[0]
        raise CheckpointError(
            f"got {len(wrong)} tensors of another shape than config.json says, first {_official_name(first)} of "
            f"{tuple(state[first].shape)} instead of {tuple(shapes[first])}; take config.json and weights together"
        )
    model: VideoReferForConditionalGeneration = VideoReferForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=state, dtype=dtype
    )
    return model


def _file_of_each(folder: Path) -> dict[str, Path]:
    """The file that holds each official name; what the index says must be in the files, and nothing else."""
    if (folder / _INDEX).exists():
        files: Iterable[str] = sorted(set(_read_json(folder / _INDEX)["weight_map"].values()))
    else:
        files = [_SINGLE]
    holders: dict[str, Path] = {}
    for file in files:
        path = folder / file
        if not path.exists():
            raise CheckpointError(f"{path} is missing; a checkpoint has {_SINGLE}, or {_INDEX} and the files it names")
        with safe_open(path, framework="pt") as tensors:
            holders |= dict.fromkeys(tensors.keys(), path)
    return holders


def _meta_state(config: VideoReferConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return dict(VideoReferForConditionalGeneration(config).state_dict())


def _official_name(ours: str) -> str:
    match ours.split("."):
        case ["connector", stage, place, *part, kind] if stage in _STAGES:
            block = f"{_STAGES[stage]}.b{int(place) + 1}"
            return f"model.mm_projector.{block}.{_BLOCK_PARTS['.'.join(part)]}.{kind}"
    prefix = next(prefix for prefix in _PREFIXES if ours.startswith(prefix))
    return _PREFIXES[prefix] + ours.removeprefix(prefix)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise CheckpointError(f"{path} is missing; take the whole folder of the official checkpoint")
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return read
