"""Base models of trainings: which weights a profile names, under which licence, and the network made of them."""

import json
from pathlib import Path
from typing import Any

from flows.profile_files import ProfileError
from flows.train_profile import Base, EmbeddedBase, FolderBase, InitBase, Network, PairBase
from flows.train_record import BaseLabel, TrainingError
from infra.video_index import file_sha256
from infra.weights import CATALOGUE, weight_label, weight_path
from schemas.record import short_id

EMBEDDED_WEIGHTS = {"vision tower": "efficientnet-lite0", "language model": "smollm2-135m"}
_WEIGHT_FILES = (".safetensors", ".bin", ".gguf")
_OUR_TYPE = "videorefer"
_OFFICIAL_TYPE = "videorefer_qwen2"
MODEL_TYPES = (_OUR_TYPE, _OFFICIAL_TYPE)
"""What a config.json may call a whole model: one that was saved here, or the official checkpoint."""


def base_labels(base: Base) -> tuple[BaseLabel, ...]:
    """What a training begins with, and proof that it is there.

    A folder's label is a digest of what its files hold, notes left out: a model that was trained on in its place is
    another. Raises WeightError for packaged weights that were not fetched, TrainingError for a folder without a model.
    """
    match base:
        case EmbeddedBase():
            for name in EMBEDDED_WEIGHTS.values():
                weight_path(name)
            return tuple(
                BaseLabel(role=role, weights=weight_label(name), license=CATALOGUE[name].license)
                for role, name in EMBEDDED_WEIGHTS.items()
            )
        case FolderBase(path=path):
            return (_folder_label("whole model", Path(path)),)
        case PairBase(vision=vision, language=language):
            parts = {"vision tower": vision, "language model": language}
            return tuple(_folder_label(role, Path(path)) for role, path in parts.items())
        case InitBase():
            raise TrainingError("the profile names no base model")


def require_ours(base: Base) -> None:
    """Raises ProfileError for a model folder of another architecture, TrainingError for a folder that is none."""
    if not isinstance(base, FolderBase):
        return
    found = _config(Path(base.path))["model_type"]
    if found not in MODEL_TYPES:
        raise ProfileError(
            f"{base.path} holds a model of type {found!r}; allowed as a whole model are {_OUR_TYPE!r}, as saved here, "
            f"and {_OFFICIAL_TYPE!r}, the official checkpoint. A vision tower and a language model make a base of "
            'kind = "pair" in a profile of your own'
        )


def absolute(base: Base) -> Base:
    """The same base, its folders named so that they are found from anywhere."""
    match base:
        case FolderBase(path=path):
            return base.model_copy(update={"path": str(Path(path).absolute())})
        case PairBase(vision=vision, language=language):
            folders = {"vision": str(Path(vision).absolute()), "language": str(Path(language).absolute())}
            return base.model_copy(update=folders)
        case _:
            return base


def load_base(base: Base, seed: int) -> tuple[Any, Any]:
    """The network and its processor, on the CPU, new weights drawn from `seed`: the same on every rank.

    Raises WeightError, TrainingError (also for weights that were cut off), and what transformers raises for a folder
    that it cannot read.
    """
    import torch

    torch.manual_seed(seed)
    match base:
        case EmbeddedBase(network=network):
            from model.embedded import build_embedded

            return build_embedded(seed, **network.model_dump())
        case FolderBase(path=path) if _config(Path(path))["model_type"] == _OFFICIAL_TYPE:
            return _official(base)
        case FolderBase(path=path):
            from safetensors import SafetensorError
            from transformers import AutoModelForImageTextToText, AutoProcessor

            import model.auto  # noqa: F401 - tells transformers our classes

            try:
                saved = AutoModelForImageTextToText.from_pretrained(path, local_files_only=True)
            except SafetensorError as error:
                raise TrainingError(f"{path} holds weights that cannot be read: {error}; copy them anew") from error
            return saved, AutoProcessor.from_pretrained(path, local_files_only=True)
        case PairBase(vision=vision, language=language, network=network):
            return _pair(Path(vision), Path(language), network)
        case InitBase():
            raise TrainingError("the profile names no base model")


def _official(base: FolderBase) -> tuple[Any, Any]:
    """An official checkpoint; its tokenizer lies beside it, its tower is SigLIP."""
    from transformers import AutoTokenizer, SiglipImageProcessorPil

    from model.official_checkpoint import load_official
    from model.processing import processor_for

    folder = Path(base.path)
    model = load_official(folder, paper_exact=base.paper_exact)
    side_px = model.config.vision_config.image_size
    image_processor = SiglipImageProcessorPil(size={"height": side_px, "width": side_px})
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model, processor_for(model.config, tokenizer, image_processor, base.max_length)


def _pair(vision: Path, language: Path, network: Network) -> tuple[Any, Any]:
    """A tower and a language model from their folders; connector and object encoder as they begin.

    `vision` may hold a dual encoder such as SigLIP, of which the tower is taken. Both parts become those of the model
    as they were read, so that they are in memory once, in the format of their files.
    """
    import torch
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModel,
        AutoModelForCausalLM,
        AutoTokenizer,
    )

    from model.configuration import VideoReferConfig
    from model.modeling import VideoReferForConditionalGeneration
    from model.processing import processor_for
    from model.training.parts import part
    from model.vision_tower import TransformerTower

    vision_config = AutoConfig.from_pretrained(vision, local_files_only=True)
    vision_config = getattr(vision_config, "vision_config", vision_config)
    config = VideoReferConfig(
        vision_config=vision_config,
        text_config=AutoConfig.from_pretrained(language, local_files_only=True),
        **network.model_dump(exclude={"max_length"}),
    )
    tokenizer = AutoTokenizer.from_pretrained(language, local_files_only=True)
    image_processor = AutoImageProcessor.from_pretrained(vision, local_files_only=True, backend="pil")
    processor = processor_for(config, tokenizer, image_processor, network.max_length)
    with torch.device("meta"):
        model = VideoReferForConditionalGeneration(config)
    tower = AutoModel.from_pretrained(vision, config=vision_config, local_files_only=True)
    model.vision_tower = TransformerTower(tower, vision_config, network.vision_select_layer)
    model.language_model = AutoModelForCausalLM.from_pretrained(language, local_files_only=True)
    model.generation_config = model.language_model.generation_config
    for name in ("connector", "object_encoder"):
        part(model, name).to_empty(device="cpu").apply(_draw)
    return model.eval(), processor


def _draw(module: Any) -> None:
    """The start that a layer has of itself."""
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise TrainingError(f"{folder} holds no model: {error}; give a folder with config.json and weights") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise TrainingError(f"{folder}/config.json names no model_type; give a folder that transformers reads")
    return config


def _folder_label(role: str, folder: Path) -> BaseLabel:
    _config(folder)
    if not any(path.suffix in _WEIGHT_FILES for path in folder.iterdir()):
        raise TrainingError(
            f"{folder} holds no weights ({', '.join(_WEIGHT_FILES)}); give a folder with config.json and weights"
        )
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name[0] != "." and path.suffix != ".md")
    digest = short_id(*(part for path in files for part in (path.name, file_sha256(path))))
    return BaseLabel(role=role, weights=f"{folder.name}@{digest[:12]}", license=_stated_license(folder))


def _stated_license(folder: Path) -> str:
    """The `license` of the folder's model card, as its header states it."""
    card = folder / "README.md"
    header = card.read_text(encoding="utf-8", errors="replace").split("---")[1:2] if card.exists() else []
    lines = [
        line.partition(":")[2].strip() for text in header for line in text.splitlines() if line.startswith("license:")
    ]
    return lines[0] if lines and lines[0] else "not stated"
