"""The small pairing that a laptop can train: EfficientNet-lite0 and SmolLM2-135M-Instruct from packaged weights.

Connector and object encoder are new. The language model comes as 4-bit GGUF; it is made plain once, in some 15 s, and
kept in the user's cache, from which it loads in about one.
"""

import shutil
from pathlib import Path
from typing import Any, cast

import torch
from filelock import FileLock
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    SiglipImageProcessorPil,
)

from infra.settings import settings
from infra.weights import CATALOGUE, weight_label, weight_path
from model.configuration import VideoReferConfig
from model.efficientnet_lite import (
    IMAGE_MEAN,
    IMAGE_STD,
    EfficientNetLite,
    EfficientNetLiteConfig,
    convert_state_dict,
)
from model.modeling import VideoReferForConditionalGeneration
from model.object_position import ObjectPosition, position_features
from model.processing import VideoReferProcessor, processor_for
from model.token_merge import Merged

VISION_WEIGHT = "efficientnet-lite0"
LANGUAGE_WEIGHT = "smollm2-135m"
WEIGHTS = (VISION_WEIGHT, LANGUAGE_WEIGHT)
"""What must have been fetched (`infra.weights.fetch`)."""

SIDE_PX = 256
"""Frames are this wide and high: 16 x 16 cells, which a connector stride of 4 divides whole, each 40 x 22.5 px of a
frame of 640 x 360. At 192 px, three quarters of that in both directions, a small object is a lesser part of its cell;
at 384 px the tower takes two and a half times as long, and then costs more than the language model.
"""
CONNECTOR_STRIDE = (2, 4, 4)
"""8 tokens a frame: on a CPU the language model's time is that of its tokens."""

_FORMAT_REVISION = 1
"""Of the folder that `_plain_language_model` writes; raise it when what is written changes."""

_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""SmolLM2's own, without the 21 tokens of a system turn that it adds to every chat and that say nothing of videos."""


def engine_labels() -> tuple[str, ...]:
    """The weights that the pairing begins with, as `name@sha256-prefix`."""
    return tuple(weight_label(name) for name in WEIGHTS)


def build_embedded(
    seed: int,
    *,
    num_frames: int = 4,
    num_object_tokens: int = 4,
    connector_depth: int = 1,
    connector_stride: tuple[int, int, int] = CONNECTOR_STRIDE,
    object_position: bool = True,
    paper_exact: bool = False,
    side_px: int = SIDE_PX,
    max_length: int | None = 1024,
) -> tuple[VideoReferForConditionalGeneration, VideoReferProcessor]:
    """Model, float32 on the CPU, and the processor that goes with it; the same seed gives the same weights.

    Packaged weights fill tower and language model; connector and object encoder are drawn from `seed` and then scaled
    by `_match_scales`. The other arguments are those of `VideoReferConfig`, of frames (`side_px`, a multiple of 16) and
    of the processor (`max_length`). Raises WeightError where a weight was not fetched, OSError where the cache cannot
    be written.
    """
    if side_px < 16 or side_px % 16:
        raise ValueError(f"got side_px {side_px}; a multiple of 16 is allowed, so that cells are of one size")
    state = convert_state_dict(torch.load(weight_path(VISION_WEIGHT), map_location="cpu", weights_only=True))
    language_model, tokenizer = language_model_and_tokenizer()
    config = VideoReferConfig(
        vision_config=EfficientNetLiteConfig(image_size=side_px),
        text_config=language_model.config,
        num_frames=num_frames,
        connector_depth=connector_depth,
        connector_stride=connector_stride,
        num_object_tokens=num_object_tokens,
        object_position=object_position,
        paper_exact=paper_exact,
    )
    image_processor = SiglipImageProcessorPil(
        size={"height": side_px, "width": side_px}, image_mean=list(IMAGE_MEAN), image_std=list(IMAGE_STD)
    )
    processor = processor_for(config, tokenizer, image_processor, max_length)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VideoReferForConditionalGeneration(config)
    cast("EfficientNetLite", model.vision_tower).load_state_dict(state)
    model.language_model = language_model
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    _match_scales(model, seed)
    return model.eval(), processor


def language_model_and_tokenizer() -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """SmolLM2-135M-Instruct in float32, its end-of-turn token for end and padding. Raises as `build_embedded`."""
    source = weight_path(LANGUAGE_WEIGHT)
    name = f"{CATALOGUE[LANGUAGE_WEIGHT].sha256}-r{_FORMAT_REVISION}"
    folder = settings().cache_dir / "derived" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{name}.lock")):
        if not folder.exists():
            _plain_language_model(source, folder)
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model, tokenizer


def save_language_model(folder: Path) -> None:
    """SmolLM2-135M-Instruct in bfloat16, as vLLM loads it: it does not read the packaged GGUF file. Raises as
    `build_embedded`.
    """
    model, tokenizer = language_model_and_tokenizer()
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _plain_language_model(gguf: Path, folder: Path) -> None:
    """Writes model and tokenizer of a GGUF file as transformers saves them; `folder` appears whole or not at all.

    Float32 takes 538 MB of disk and keeps every bit of what the 4-bit weights stand for.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that died; the caller holds the lock
    try:
        read: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        told = {name: value for name, value in read.config.to_dict().items() if name != "quantization_config"}
        plain = LlamaForCausalLM(LlamaConfig(**told))
        plain.load_state_dict(read.state_dict())
        plain.generation_config = read.generation_config
        plain.save_pretrained(partial)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        tokenizer.chat_template = _CHAT_TEMPLATE
        tokenizer.save_pretrained(partial)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@torch.no_grad()
def _match_scales(model: VideoReferForConditionalGeneration, seed: int) -> None:
    """Scale and shift the new linear layers so that their outputs start at the scale of what reads them; in place.

    Data-dependent initialisation (Salimans and Kingma 2016, section 3): over the cells of random pictures each unit
    has mean 0, and a spread of 1 before a GELU, or that of the language model's embeddings before the language model.
    On photographs, torch's own start gives object tokens of eight times the spread of words, this one of twice. Eight
    samples are learnt by heart as fast from either.
    """
    like_words = float(cast("nn.Embedding", model.get_input_embeddings()).weight.std())
    frames = _random_frames(num_frames=8, side_px=model.config.vision_config.image_size)
    features = cast("EfficientNetLite", model.vision_tower)(frames)
    first, activation, last = model.object_encoder.mlp
    rows = features.flatten(0, 2)
    _standardise(cast("nn.Linear", first), rows, 1.0)
    _standardise(cast("nn.Linear", last), activation(first(rows)), like_words)
    _match_readout(model, features, like_words)
    if model.object_encoder.position is not None:
        _match_position(model.object_encoder.position, seed, like_words)


def _match_position(position: ObjectPosition, seed: int, like_words: float) -> None:
    """From zero, where `ObjectPosition` starts, it hardly reaches the scale of the tokens within a short run."""
    first, activation, last = position.mlp
    nn.init.normal_(cast("nn.Linear", last).weight, generator=torch.Generator().manual_seed(seed))
    rows = _random_positions(num_objects=256)
    _standardise(cast("nn.Linear", first), rows, 1.0)
    _standardise(cast("nn.Linear", last), activation(first(rows)), like_words)


def _match_readout(model: VideoReferForConditionalGeneration, features: Tensor, like_words: float) -> None:
    first, activation, last = model.connector.readout
    connector = model.connector
    before = connector.before(features.permute(0, 3, 1, 2))
    sampled = nn.functional.silu(connector.sampler(before.transpose(0, 1)[None])[0]).transpose(0, 1)
    rows = connector.after(sampled).permute(0, 2, 3, 1).flatten(0, 2)
    _standardise(cast("nn.Linear", first), rows, 1.0)
    _standardise(cast("nn.Linear", last), activation(first(rows)), like_words)


def _standardise(linear: nn.Linear, rows: Tensor, spread: float) -> None:
    """Give each unit mean 0 and standard deviation `spread` over `rows` (N, in)."""
    out = linear(rows)
    scale = spread / out.std(0).clamp(min=1e-6)
    linear.weight.mul_(scale[:, None])
    linear.bias.sub_(out.mean(0)).mul_(scale)


def _random_frames(num_frames: int, side_px: int) -> Tensor:
    """Pictures of coloured blobs of all sizes, normalised, always the same: (num_frames, 3, side_px, side_px)."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.zeros(num_frames, 3, side_px, side_px)
    for cells in (2, 4, 8, 16, 32):
        noise = torch.randn(num_frames, 3, cells, cells, generator=generator)
        pictures += nn.functional.interpolate(noise, (side_px, side_px), mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
    return ((pictures * 0.15 + 0.45).clamp(0, 1) - mean) / std


def _random_positions(num_objects: int) -> Tensor:
    """What `ObjectPosition` reads of things that move by chance, on eight frames each, two a token; always the same."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(num_objects, 2, 2, 2, generator=generator).sort(2).values.flatten(2)  # first and last box
    times = torch.linspace(0, 1, 8)
    boxes = torch.lerp(corners[:, :1], corners[:, 1:], times[:, None])
    num_tokens = torch.full((num_objects,), 4)
    merged = Merged(torch.empty(0), num_tokens, torch.full((4 * num_objects,), 2))
    return position_features(boxes.flatten(0, 1), times.repeat(num_objects), merged)
