"""The vLLM server of `make judge`, and what it tells of its work."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import httpx

from infra.vllm.settings import VllmSettings

MODEL_NAME = "SmolLM2-135M-Instruct"
_ANSWER_S = 60.0
_COUNTER = re.compile(r"^(\w[\w:]*)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


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
    found = _COUNTER.findall(httpx.get(f"{url}/metrics", trust_env=False, timeout=_ANSWER_S).text)
    return Counts(
        _sum(found, "http_requests_total", {"handler": "/v1/chat/completions"}),
        _sum(found, "vllm:prompt_tokens_total", {}),
        _sum(found, "vllm:generation_tokens_total", {}),
    )


def _sum(found: list[tuple[str, str, str]], name: str, labels: Mapping[str, str]) -> int:
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    return sum(int(float(v)) for counter, told, v in found if counter == name and all(pair in told for pair in wanted))
