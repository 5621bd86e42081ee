"""What our way to a chat server costs: output tokens a second through the pool, against the same server flat out.

A vLLM server with SmolLM2-135M-Instruct runs on this machine's processors. Flat out, a plain loop keeps so many
requests in flight, with bodies made before. Our way is the chat analyzer in a pool with a window of that size: prompts,
validation and one re-ask. A round of it that is not counted says which payloads those are, so both send the same, and
the server has the prompts of both in its cache. Tokens are those that the server itself counts. The client shares the
processors with the server, which counts against both. A re-ask waits for the reply before it, so that the last clips
leave the server half empty, which a plain loop does not: a small part of a round of 96 clips, a fifth of one of 32.

Exits 1 where the median of five pairs, one after the other, is below 0.9.
"""

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from pydantic import JsonValue

from agents.chat_analyzer import ChatAnalyzer, ChatAnalyzerConfig
from infra.actors import Scene
from infra.async_pool import AsyncPool
from infra.chat import ChatSettings, Completion, Message
from infra.chat_client import ChatClient
from infra.structured_chat import StructuredChat
from infra.synthetic import caption_of, draw_plan
from infra.vllm.process import vllm_server
from infra.vllm.settings import VllmSettings
from model.embedded import save_language_model
from schemas.clip import Clip

MODEL = "SmolLM2-135M-Instruct"
NUM_CLIPS, WINDOW, PAIRS, GOAL = 96, 16, 5, 0.9


class Recorder(ChatClient):
    """A client that notes what it sends."""

    sent: list[dict[str, JsonValue]]

    async def complete(
        self, messages: Sequence[Message], json_schema: Mapping[str, JsonValue] | None = None
    ) -> Completion:
        """As the client's."""
        self.sent.append(self.payload(messages, json_schema))
        return await super().complete(messages, json_schema)


def clips() -> list[Clip]:
    """Painted clips that are never painted: the analyzer reads captions."""
    plans = [draw_plan(np.random.default_rng([0, number]), Scene()) for number in range(NUM_CLIPS)]
    whole: dict[str, Any] = {
        "source_id": "s", "video": "a.mp4", "video_sha256": "0" * 64, "license": "CC0-1.0", "start_s": 0, "end_s": 1,
        "start_frame": 0, "end_frame": 12, "fps": 12, "height_px": 360, "width_px": 640,
    }  # fmt: skip
    return [
        Clip(clip_id=f"clip-{number}", caption=caption_of(plan.actors, plan.pair), **whole)
        for number, plan in enumerate(plans)
    ]


def our_way(url: str, jobs: Sequence[Clip], sent: list[dict[str, JsonValue]] | None = None) -> None:
    """Analyze the clips; what is asked goes into `sent`."""
    settings = ChatSettings(
        base_url=f"{url}/v1", model=MODEL, max_tokens=256, frequency_penalty=0.3, concurrency=WINDOW, timeout_s=600
    )

    def connect(wanted: ChatSettings) -> ChatClient:
        if sent is None:
            return ChatClient(wanted)
        client = Recorder(wanted)
        client.sent = sent
        return client

    def analyzer() -> ChatAnalyzer:
        return ChatAnalyzer(ChatAnalyzerConfig(max_reasks=1), StructuredChat(settings, None, 1, connect))

    with AsyncPool(analyzer, window=WINDOW, batch_size=8, timeout_s=1200) as pool:
        done = sum(len(batch.outcomes) for batch in pool.run(0, jobs))
    assert done == len(jobs)


def flat_out(url: str, bodies: Sequence[bytes]) -> None:
    """Send the bodies, so many at a time."""

    async def run() -> None:
        waiting = iter(bodies)

        async def serve(client: httpx.AsyncClient) -> None:
            for body in waiting:
                response = await client.post(f"{url}/v1/chat/completions", content=body)
                response.raise_for_status()

        headers = {"content-type": "application/json"}
        async with httpx.AsyncClient(timeout=600, trust_env=False, headers=headers) as client:
            await asyncio.gather(*(serve(client) for _ in range(WINDOW)))

    asyncio.run(run())


def measured_pair(url: str, bodies: Sequence[bytes], jobs: Sequence[Clip], *, flat_first: bool) -> tuple[float, float]:
    """Output tokens a second flat out and our way, one right after the other."""
    ways = [lambda: flat_out(url, bodies), lambda: our_way(url, jobs)]
    rates = [tokens_per_s(url, way) for way in (ways if flat_first else reversed(ways))]
    return (rates[0], rates[1]) if flat_first else (rates[1], rates[0])


def tokens_per_s(url: str, what: Callable[[], None]) -> float:
    """Output tokens by the server's own count, a second of the clock."""
    before, start_s = reply_tokens(url), time.perf_counter()
    what()
    took_s = time.perf_counter() - start_s
    return (reply_tokens(url) - before) / took_s


def reply_tokens(url: str) -> float:
    """Output tokens since the server began."""
    text = httpx.get(f"{url}/metrics", trust_env=False, timeout=60).text
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return sum(float(sample.value) for sample in samples if sample.name == "vllm:generation_tokens_total")


def main() -> int:
    """Measure and print; 1 where the goal is missed."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        save_language_model(checkpoint)
        vllm = VllmSettings(
            name="small", model=str(checkpoint), gpus=0, cpus=os.cpu_count() or 1, dtype="bfloat16", max_model_len=4096
        )
        jobs = clips()
        with vllm_server(vllm, (MODEL,), Path(folder) / "log") as url:
            sent: list[dict[str, JsonValue]] = []
            our_way(url, jobs, sent)
            bodies = [json.dumps(payload).encode() for payload in sent]
            flat_out(url, bodies)
            pairs = [measured_pair(url, bodies, jobs, flat_first=number % 2 == 0) for number in range(PAIRS)]
    flat, ours = (statistics.median(rates) for rates in zip(*pairs, strict=True))
    ratio = statistics.median(mine / plain for plain, mine in pairs)
    told = ", ".join(f"{mine / plain:.2f}" for plain, mine in pairs)
    sys.stdout.write(
        f"vLLM, {len(bodies)} requests, {WINDOW} in flight: flat out {flat:.0f} output tokens/s, through the pool "
        f"{ours:.0f}; ratio {ratio:.3f} (goal {GOAL:g}; pairs {told})\n"
    )
    return int(ratio < GOAL)


if __name__ == "__main__":
    sys.exit(main())
