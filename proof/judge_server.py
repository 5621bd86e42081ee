"""The vLLM server of `make judge`, and what it tells of its work."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from infra.vllm.settings import VllmSettings

MODEL_NAME = "SmolLM2-135M-Instruct"
_ANSWER_S = 60.0


class Counts(NamedTuple):
    """What a server has done since it began: requests for chat completions, whatever came of them, and tokens."""

    num_requests: int
    num_prompt_tokens: int
    num_reply_tokens: int

    def since(self, before: "Counts") -> "Counts":
        """What came after."""
        return Counts(*(now - then for now, then in zip(self, before, strict=True)))


def on_processors(checkpoint: Path) -> VllmSettings:
    """A server of that checkpoint on all processors of this machine."""
    return VllmSettings(
        name="judge",
        model=str(checkpoint),
        gpus=0,
        cpus=os.cpu_count() or 1,
        dtype="bfloat16",
        max_model_len=4096,
    )


def counts(url: str) -> Counts:
    """What the server tells of itself under `/metrics`."""
    text = httpx.get(f"{url}/metrics", trust_env=False, timeout=_ANSWER_S).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return Counts(
        _sum(samples, "http_requests_total", {"handler": "/v1/chat/completions"}),
        _sum(samples, "vllm:prompt_tokens_total", {}),
        _sum(samples, "vllm:generation_tokens_total", {}),
    )


def _sum(samples: Sequence[Sample], name: str, labels: Mapping[str, str]) -> int:
    return sum(
        int(sample.value) for sample in samples if sample.name == name and labels.items() <= sample.labels.items()
    )
