"""The three models of the paper's segmenter with random weights, at their published sizes.

Sizes are those of IDEA-Research/grounding-dino-base, syscv-community/sam-hq-vit-huge and facebook/sam2.1-hiera-large,
232, 643 and 224 million parameters; the words of the tokenizer are few.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.tiny_checkpoints import drawn, save_grounding_dino, save_hq_sam, save_sam2, word_pieces

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ALWAYS_IN_SIGHT = 4.0
"""Bias of SAM 2's object score: with random weights half of all objects would be lost, and their work with them."""


class Checkpoints(NamedTuple):
    """A folder for each model."""

    detector: Path
    mask_model: Path
    video_model: Path


def write_checkpoints(root: Path, *, tiny: bool) -> Checkpoints:
    """Write all three, those of the tests where they are to be tiny; 4.4 GB else."""
    folders = Checkpoints(*(root / name for name in Checkpoints._fields))
    if tiny:
        save_grounding_dino(folders.detector)
        save_hq_sam(folders.mask_model)
        save_sam2(folders.video_model)
    else:
        _grounding_dino_base(folders.detector)
        _hq_sam_huge(folders.mask_model)
        _sam2_large(folders.video_model)
    return folders


def _grounding_dino_base(folder: Path) -> None:
    from transformers import (
        BertConfig,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessorPil,
        SwinConfig,
    )

    backbone = SwinConfig(
        image_size=384,
        embed_dim=128,
        depths=[2, 2, 18, 2],
        num_heads=[4, 8, 16, 32],
        window_size=12,
        out_indices=[2, 3, 4],
    )
    config = GroundingDinoConfig(backbone_config=backbone, text_config=BertConfig())
    drawn(GroundingDinoForObjectDetection, config, 0).save_pretrained(folder)
    GroundingDinoImageProcessorPil(size={"shortest_edge": 800, "longest_edge": 1333}).save_pretrained(folder)
    word_pieces().save_pretrained(folder)


def _hq_sam_huge(folder: Path) -> None:
    from transformers import SamHQConfig, SamHQModel, SamImageProcessorPil

    vision = {
        "hidden_size": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "global_attn_indexes": [7, 15, 23, 31],
        "mlp_dim": 5120,
    }
    config = SamHQConfig(vision_config=vision, mask_decoder_config={"vit_dim": 1280})
    drawn(SamHQModel, config, 1).save_pretrained(folder)
    SamImageProcessorPil().save_pretrained(folder)


def _sam2_large(folder: Path) -> None:
    from transformers import Sam2HieraDetConfig, Sam2VideoConfig, Sam2VideoModel, Sam2VisionConfig

    backbone = Sam2HieraDetConfig(
        hidden_size=144,
        blocks_per_stage=[2, 6, 36, 4],
        embed_dim_per_stage=[144, 288, 576, 1152],
        num_attention_heads_per_stage=[2, 4, 8, 16],
        window_size_per_stage=[8, 4, 16, 8],
        global_attention_blocks=[23, 33, 43],
    )
    vision = Sam2VisionConfig(backbone_config=backbone, backbone_channel_list=[1152, 576, 288, 144])
    model: PreTrainedModel = drawn(Sam2VideoModel, Sam2VideoConfig(vision_config=vision), 2)
    model.mask_decoder.pred_obj_score_head.proj_out.bias.data.fill_(ALWAYS_IN_SIGHT)
    model.save_pretrained(folder)
