"""A trained model as a folder that loads like any other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.modeling import VideoReferForConditionalGeneration
from model.processing import VideoReferProcessor
from model.training.export import export_pretrained
from model.training.feed import MicroBatch
from model.training.loop import fit
from model.training.settings import AdapterSettings, TrainSettings
from model.training.sharding import process_group


@pytest.mark.parametrize(("parts", "tied"), [(("adapter", "connector"), False), (("language_model",), True)])
def test_what_was_trained_loads_and_gives_the_same_logits(
    tmp_path: Path,
    tiny_model: Callable[..., Any],
    tiny_config: Callable[..., Any],
    tiny_processor: Callable[..., VideoReferProcessor],
    micro_batches: Callable[[int], list[MicroBatch]],
    make_settings: Callable[..., TrainSettings],
    repeated: Any,
    parts: tuple[str, ...],
    tied: bool,
) -> None:
    config = tiny_config(text_overrides={"tie_word_embeddings": tied})
    model, batches = tiny_model(config), micro_batches(2)
    model.generation_config.max_new_tokens, model.generation_config.eos_token_id = 7, [2, 5]
    adapter = AdapterSettings(rank=2, targets="all-linear") if "adapter" in parts else None
    settings = make_settings(parts=parts, adapter=adapter, micro_batch_size=2, learning_rate=0.05)
    inputs = {name: value for name, value in (batches[0].inputs or {}).items() if name != "labels"}
    with process_group():
        fit(model, repeated(batches, 2), settings, tmp_path / "run", lambda _: None, lambda: False)
        with torch.no_grad():
            trained = model.eval()(**inputs).logits
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "stale").touch()
    export_pretrained(model, tiny_processor(config), tmp_path / "out", torch.float32)
    assert not (tmp_path / "out" / "stale").exists()
    loaded = VideoReferForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    assert isinstance(VideoReferProcessor.from_pretrained(tmp_path / "out"), VideoReferProcessor)
    assert not [name for name in loaded.state_dict() if "lora" in name or "base_layer" in name]
    assert (loaded.generation_config.max_new_tokens, loaded.generation_config.eos_token_id) == (7, [2, 5])
    fresh = tiny_model(config)
    with torch.no_grad():
        after = loaded(**inputs).logits
        torch.testing.assert_close(after, trained, atol=1e-4, rtol=0)
        assert not torch.allclose(after, fresh(**inputs).logits, atol=1e-2)
    for name, value in loaded.state_dict().items():
        if name.startswith("vision_tower."):
            assert torch.equal(value, fresh.state_dict()[name])
