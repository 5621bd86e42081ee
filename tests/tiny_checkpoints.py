"""Fixtures: tiny checkpoints with random weights, of the very classes that the real ones have, by `save_pretrained`.

Random weights find nothing. What is shown with them is that the real code loads and runs, and all that does not depend
on what the weights say. A plugin of tests/conftest.py; torch is imported only where a fixture is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

WORDS = ("dog", "car", "red", "man", "ball", "bird", "cat", "tree", "umbrella", "##s", "t", "shirt", "-", "a")
SAM2_SIDE_PX = 128
SAM3_PATCHES = 8


class TinyCheckpoints(NamedTuple):
    """A folder for each model of the segmenters that load checkpoints."""

    grounding_dino: Path
    hq_sam: Path
    sam2: Path
    sam3: Path


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoints:
    """One of each, the same in every run."""
    root = tmp_path_factory.mktemp("checkpoints")
    folders = TinyCheckpoints(*(root / f"tiny-{name.replace('_', '-')}" for name in TinyCheckpoints._fields))
    save_grounding_dino(folders.grounding_dino)
    save_hq_sam(folders.hq_sam)
    save_sam2(folders.sam2)
    save_sam3(folders.sam3)
    return folders


def drawn(model_class: type[PreTrainedModel], config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """A model with weights large enough that signals reach its end: at its own first draw, pixels hardly matter there.

    The same for the same seed.
    """
    import torch

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = model_class(config)
        for name, value in model.named_parameters():
            if value.dim() > 1:
                value.normal_(std=value[0].numel() ** -0.5)
            elif "bias" in name:
                value.normal_(std=0.1)
            elif value.abs().max() < 1e-3:  # scales of layers that begin as good as absent
                value.fill_(1.0)
    return model.eval()


def save_grounding_dino(folder: Path) -> None:
    """16 queries, images of about 64 px, and a BERT tokenizer of a few words."""
    from transformers import (
        BertConfig,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessorPil,
        SwinConfig,
    )

    backbone = SwinConfig(
        image_size=64, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2], window_size=4, out_indices=[2, 3, 4]
    )
    config = GroundingDinoConfig(
        backbone_config=backbone,
        text_config=BertConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=1100
        ),
        d_model=32,
        num_queries=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
    )
    drawn(GroundingDinoForObjectDetection, config, 0).save_pretrained(folder)
    GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 107}).save_pretrained(folder)
    word_pieces().save_pretrained(folder)


def word_pieces() -> PreTrainedTokenizerFast:
    """BERT's tokenizer, with its own ids for what the model knows by number: [CLS], [SEP], full stop, question mark."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import BertTokenizerFast

    words = [f"[unused{i}]" for i in range(1100)]
    words[0], words[100], words[101], words[102], words[103] = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
    words[1012], words[1029] = ".", "?"
    words[1040 : 1040 + len(WORDS)] = WORDS
    vocab = {word: i for i, word in enumerate(words)}
    core = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return BertTokenizerFast(tokenizer_object=core, vocab=vocab)


def save_hq_sam(folder: Path) -> None:
    """Images of 64 px."""
    from transformers import SamHQConfig, SamHQModel, SamImageProcessorPil

    vision = {
        "hidden_size": 32,
        "output_channels": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
        "window_size": 2,
        "global_attn_indexes": [0, 1, 2, 3],
        "num_pos_feats": 16,
        "mlp_dim": 32,
    }
    prompt = {"hidden_size": 32, "image_size": 64, "patch_size": 8}
    decoder = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 32, "vit_dim": 32}
    config = SamHQConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    drawn(SamHQModel, config, 1).save_pretrained(folder)
    SamImageProcessorPil(
        size={"longest_edge": 64},
        pad_size={"height": 64, "width": 64},
        mask_size={"longest_edge": 32},
        mask_pad_size={"height": 32, "width": 32},
    ).save_pretrained(folder)


def save_sam2(folder: Path) -> None:
    """Frames of 128 px; the object score is set high, as objects out of sight would have no masks to look at."""
    import torch
    from transformers import Sam2HieraDetConfig, Sam2VideoConfig, Sam2VideoModel, Sam2VisionConfig

    side = SAM2_SIDE_PX
    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[side, side],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[4, 2, 4, 2],
        global_attention_blocks=[3],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[side // 4] * 2, [side // 8] * 2, [side // 16] * 2],
        fpn_hidden_size=128,
    )
    config = Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 128, "image_size": side},
        mask_decoder_config={"hidden_size": 128, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 32},
        image_size=side,
        **tracker_sizes(layers=2, grid=side // 16),
    )
    model = drawn(Sam2VideoModel, config, 2)
    torch.nn.init.constant_(model.mask_decoder.pred_obj_score_head.proj_out.bias, 4.0)
    model.save_pretrained(folder)


def tracker_sizes(layers: int, grid: int) -> dict[str, object]:
    """Memory attention and encoder of SAM 2 and SAM 3; features are twice as wide as memories, always 64 wide."""
    return {
        "memory_attention_hidden_size": 128,
        "memory_attention_num_layers": layers,
        "memory_attention_feed_forward_hidden_size": 64,
        "memory_attention_rope_feat_sizes": [grid] * 2,
        "memory_encoder_hidden_size": 128,
        "mask_downsampler_embed_dim": 128,
        "memory_fuser_embed_dim": 128,
        "memory_fuser_intermediate_dim": 32,
    }


def save_sam3(folder: Path) -> None:
    """Frames of 112 px, 5 queries, and a CLIP tokenizer that knows letters."""
    from transformers import Sam3VideoConfig, Sam3VideoModel

    side, width = SAM3_PATCHES * 14, {"hidden_size": 128, "num_attention_heads": 2}
    backbone = {
        "model_type": "sam3_vit_model",
        **width,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "image_size": side,
        "window_size": 4,
        "global_attn_indexes": [1],
        "pretrain_image_size": side,
    }
    vision = {
        "backbone_config": backbone,
        "fpn_hidden_size": 128,
        "backbone_feature_sizes": [[SAM3_PATCHES * times] * 2 for times in (4, 2, 1)],
    }
    layers = {**width, "num_layers": 1, "intermediate_size": 64}
    text = {"vocab_size": 600, "projection_dim": 128, "num_hidden_layers": 1, "max_position_embeddings": 32}
    detector = {
        "model_type": "sam3",
        "vision_config": vision,
        "text_config": {"model_type": "clip_text_model", **width, "intermediate_size": 64, **text},
        "geometry_encoder_config": layers,
        "detr_encoder_config": layers,
        "detr_decoder_config": {**layers, "num_queries": 5},
        "mask_decoder_config": width,
    }
    tracker = {
        "model_type": "sam3_tracker_video",
        "vision_config": {"model_type": "sam3_vision_model", **vision},
        "prompt_encoder_config": {"hidden_size": 128, "image_size": side, "patch_size": 14},
        "mask_decoder_config": {**width, "mlp_dim": 32, "iou_head_hidden_dim": 32},
        "image_size": side,
        **tracker_sizes(layers=1, grid=SAM3_PATCHES),
    }
    config = Sam3VideoConfig(detector_config=detector, tracker_config=tracker, low_res_mask_size=SAM3_PATCHES * 4)
    drawn(Sam3VideoModel, config, 3).save_pretrained(folder)
    byte_pairs().save_pretrained(folder)


def byte_pairs() -> PreTrainedTokenizerFast:
    """CLIP's tokenizer over single letters."""
    from transformers import CLIPTokenizerFast

    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789-'"]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return CLIPTokenizerFast(vocab={word: i for i, word in enumerate(words)}, merges=[])
