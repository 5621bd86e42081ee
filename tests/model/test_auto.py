"""A saved folder loads by the Auto classes once `model.auto` is imported."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import model.auto  # noqa: F401 - the import is what is tested
from model.configuration import VideoReferConfig

ROOT = Path(__file__).resolve().parents[2]

LOAD = """
import sys
import torch
import model.auto
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
torch.set_num_threads(1)
folder = sys.argv[1]
network = AutoModelForImageTextToText.from_pretrained(folder)
batch = torch.load(f"{folder}/batch.pt")
with torch.no_grad():
    torch.save(network(**batch).logits, f"{folder}/logits.pt")
print(type(AutoConfig.from_pretrained(folder)).__name__, type(network).__name__)
processor = AutoProcessor.from_pretrained(folder)
print(type(processor).__name__, processor.num_object_tokens, processor.tokenizer.convert_tokens_to_ids("<region>"))
"""


def test_a_saved_folder_loads_in_a_fresh_interpreter(
    tiny_model: Callable[..., Any], tiny_processor: Callable[..., Any], make_request: Callable[..., Any], tmp_path: Path
) -> None:
    network = tiny_model()
    processor = tiny_processor(network.config)
    network.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    batch = dict(processor([make_request(((0, 1, 2),), answer=None)]))
    torch.save(batch, tmp_path / "saved" / "batch.pt")
    command = [sys.executable, "-c", LOAD, str(tmp_path / "saved")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        "VideoReferConfig",
        "VideoReferForConditionalGeneration",
        "VideoReferProcessor",
        str(network.config.num_object_tokens),
        str(network.config.region_token_id),
    ]
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "saved" / "logits.pt"), network(**batch).logits)


def test_it_is_no_text_model(tiny_config: Callable[..., VideoReferConfig]) -> None:
    assert AutoConfig.for_model("videorefer").model_type == "videorefer"
    with pytest.raises(ValueError, match="VideoReferConfig"):
        AutoModelForCausalLM.from_config(tiny_config())
