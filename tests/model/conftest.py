"""Tiny networks, a tiny tokenizer and requests with random frames, all from fixed seeds, for the model's tests."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, SiglipImageProcessorPil

from model.configuration import VideoReferConfig
from model.request import IMAGE, REGION, VIDEO, Message, ObjectRegion, Request, Role, Scene

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEXT_VOCABULARY = 256 + len(SPECIAL)
"""Bytes and special tokens; the placeholders come after them and have no row in the embedding."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny products are faster without a pool of threads, and the same on every machine."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny_tokenizer(tmp_path: Path) -> PreTrainedTokenizerFast:
    """A ChatML tokenizer with one token per byte, loaded from disk; ends an answer with `<|im_end|>`, pads with
    `<|endoftext|>`, and knows `<video>`, `<image>` and `<region>` as its last three ids.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    fast.add_tokens([AddedToken(name, special=True) for name in (VIDEO, IMAGE, REGION)], special_tokens=True)
    fast.save_pretrained(tmp_path / "tokenizer")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert isinstance(loaded, PreTrainedTokenizerFast)
    return loaded


def vision_dict(kind: str, image_size_px: int) -> dict[str, Any]:
    """Two layers of a SigLIP or CLIP tower of width 16 on patches of 14 px: 28 px give a 2 x 2 grid, 56 px 4 x 4."""
    return {
        "model_type": f"{kind}_vision_model",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": image_size_px,
        "patch_size": 14,
    }


def text_dict(kind: str) -> dict[str, Any]:
    """Two layers of a Llama or Qwen2 of width 32; weights so large that every input matters to the logits."""
    return {
        "model_type": kind,
        "vocab_size": TEXT_VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }


@pytest.fixture
def tiny_config() -> Callable[..., VideoReferConfig]:
    """`tiny_config(vision="siglip", text="qwen2", image_size_px=28, text_overrides={}, **fields)`, a configuration."""

    def build(
        vision: str = "siglip",
        text: str = "qwen2",
        image_size_px: int = 28,
        text_overrides: dict[str, Any] | None = None,
        **overrides: Any,
    ) -> VideoReferConfig:
        values: dict[str, Any] = {
            "vision_config": vision_dict(vision, image_size_px),
            "text_config": text_dict(text) | (text_overrides or {}),
            "num_frames": 4,
            "connector_depth": 1,
            "num_object_tokens": 2,
            "object_position": not overrides.get("paper_exact", False),
            "video_token_id": TEXT_VOCABULARY,
            "image_token_id": TEXT_VOCABULARY + 1,
            "region_token_id": TEXT_VOCABULARY + 2,
        }
        return VideoReferConfig(**(values | overrides))

    return build


@pytest.fixture
def tiny_model(tiny_config: Callable[..., VideoReferConfig]) -> Callable[..., Any]:
    """`tiny_model(config=None, seed=0, **arguments of tiny_config)`: in evaluation mode, in float32, and without a
    parameter that is all zeros, so that nothing starts switched off.
    """

    def build(config: VideoReferConfig | None = None, seed: int = 0, **overrides: Any) -> Any:
        from model.modeling import VideoReferForConditionalGeneration

        torch.manual_seed(seed)
        model = VideoReferForConditionalGeneration(config or tiny_config(**overrides))
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.2)
        return model.eval()

    return build


@pytest.fixture
def tiny_processor(tiny_tokenizer: PreTrainedTokenizerFast) -> Callable[..., Any]:
    """`tiny_processor(config, max_length=512)`: a VideoReferProcessor that agrees with the configuration."""

    def build(config: VideoReferConfig, max_length: int = 512) -> Any:
        from model.processing import processor_for

        side = config.vision_config.image_size
        image_processor = SiglipImageProcessorPil(size={"height": side, "width": side})
        return processor_for(config, tiny_tokenizer, image_processor, max_length)

    return build


@pytest.fixture
def make_request() -> Callable[..., Request]:
    """`make_request(object_frames=((0,),), num_frames=4, ...)`: a Request with random frames and masks.

    `object_frames` names for each object the frames of its masks; a frame given as a negative number, -1 - frame, is
    one where it is out of sight. `num_frames` 0 gives text only, `is_image` an image. `shown` defaults to all frames.
    `answer=None` leaves the last turn to the model.
    """

    def build(
        object_frames: Sequence[Sequence[int]] = ((0,),),
        num_frames: int = 4,
        shown: Sequence[int] | None = None,
        is_image: bool = False,
        question: str | None = None,
        answer: str | None = "A cat.",
        size_px: tuple[int, int] = (36, 48),
        seed: int = 0,
    ) -> Request:
        random = np.random.default_rng(seed)
        scene = None
        if num_frames:
            scene = Scene(
                frames=random.integers(0, 256, (num_frames, *size_px, 3), dtype=np.uint8),
                times_s=tuple(0.5 * frame for frame in range(num_frames)),
                shown=tuple(range(num_frames) if shown is None else shown),
                start_s=0.0,
                end_s=0.0 if is_image else 0.5 * num_frames,
                is_image=is_image,
            )
        objects = tuple(region(random, frames, size_px) for frames in object_frames) if num_frames else ()
        if question is None:
            names = " and ".join(f"[{REGION}]" for _ in objects)
            opening = "" if scene is None else (IMAGE if is_image else VIDEO) + "\n"
            question = opening + (f"What is {names}?" if names else "What is there?")
        turns: list[tuple[Role, str]] = [("user", question)]
        if answer is not None:
            turns.append(("assistant", answer))
        return Request(tuple(Message(role, content) for role, content in turns), scene, objects)

    return build


def region(random: np.random.Generator, frames: Sequence[int], size_px: tuple[int, int]) -> ObjectRegion:
    """An object with a random box as its mask on each frame, none where the frame is given as -1 - frame."""
    places = tuple(frame if frame >= 0 else -1 - frame for frame in frames)
    masks = []
    for frame in frames:
        top, left = (int(random.integers(0, side - 8)) for side in size_px)
        mask = np.zeros(size_px, dtype=np.bool_)
        mask[top : top + int(random.integers(4, 20)), left : left + int(random.integers(4, 20))] = True
        masks.append(mask if frame >= 0 else None)
    return ObjectRegion(places, tuple(masks))
