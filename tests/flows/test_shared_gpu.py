"""vLLM servers that share a GPU with a segmenter: what they keep for attention is named in bytes, and all of it fits.

A server that is not told its bytes takes for its own whatever others load on the GPU while it starts, and ends where
they free memory meanwhile (vLLM 0.32.0, GPUWorker.determine_available_memory).
"""

from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from flows.profile_config import Profile, Resources, load_profile, shipped_profiles

GIB = 2**30
SMALL_GPU_BYTES = 24 * GIB
COMPOSE = Path(__file__).resolve().parents[2] / "infra/deploy/compose.gpu.yaml"
COMPOSE_GPU_BYTES = 48e9
WORK_BYTES = 1.3 * GIB
"""What a server needs beside weights and cache: activations of its largest batch, CUDA's context and graphs."""


class Model(NamedTuple):
    """Of a model's config.json on the hub, and the size of its safetensors."""

    weights_bytes: int
    layers: int
    kv_heads: int
    head_dim: int

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token, in 16 bit."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 2


MODELS = {
    "Qwen/Qwen2.5-1.5B-Instruct": Model(3_087_428_608, 28, 2, 128),
    "Qwen/Qwen2.5-VL-3B-Instruct": Model(7_509_245_952, 36, 2, 128),
    "Qwen/Qwen2-7B-Instruct": Model(15_231_233_024, 28, 4, 128),
}


def faults(model: str, max_model_len: int, cache_bytes: int | None, share_bytes: float) -> list[str]:
    """Why such a server would not start beside others, or would later lack memory."""
    if cache_bytes is None:
        return [f"{model}: takes what others load meanwhile for its own"]
    found = []
    of_model = MODELS[model]
    if cache_bytes < max_model_len * of_model.token_bytes:
        found.append(f"{model}: its cache does not hold the longest question")
    if of_model.weights_bytes + cache_bytes + WORK_BYTES > share_bytes:
        found.append(f"{model}: more than its share")
    return found


def shared_faults(profile: Profile) -> list[str]:
    found = []
    for server in profile.vllm:
        if 0 < server.gpus < 1:
            cache = server.options.get("kv-cache-memory-bytes")
            share_bytes = server.gpu_memory_utilization * SMALL_GPU_BYTES
            found += faults(server.model, server.max_model_len, cache if isinstance(cache, int) else None, share_bytes)
            if server.gpu_memory_utilization > server.gpus:
                found.append(f"{server.name}: more than Ray counts")
    return found


@pytest.mark.parametrize("name", shipped_profiles())
def test_servers_that_share_a_gpu_know_their_cache_and_fit(name: str) -> None:
    assert shared_faults(load_profile(name)) == []


def test_the_small_profile_fills_one_gpu() -> None:
    profile = load_profile("small")
    segmenter = profile.batching("segmenter")
    assert isinstance(segmenter, Resources)
    assert sum(server.gpus for server in profile.vllm) + segmenter.gpus == 1


@pytest.mark.parametrize("options", [{}, {"kv-cache-memory-bytes": 4 * GIB}, {"kv-cache-memory-bytes": GIB // 2}])
def test_a_cache_not_named_too_large_or_too_small_is_found(options: dict[str, int]) -> None:
    profile = load_profile("small")
    seer = next(server for server in profile.vllm if server.name == "seer")
    assert shared_faults(profile.model_copy(update={"vllm": (seer.model_copy(update={"options": options}),)}))


def test_so_does_the_server_of_compose() -> None:
    words = yaml.safe_load(COMPOSE.read_text())["services"]["vllm"]["command"]
    said = dict(word.removeprefix("--").split("=") for word in words[1:])
    share_bytes = float(said["gpu-memory-utilization"]) * COMPOSE_GPU_BYTES
    model, cache_bytes = said["served-model-name"], int(said["kv-cache-memory-bytes"])
    assert faults(model, int(said["max-model-len"]), cache_bytes, share_bytes) == []
