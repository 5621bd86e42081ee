"""A vLLM server of the packaged language model on this machine's processor, from start to stop.

vLLM lives in a virtual environment of its own: it wants an older FastAPI than Prefect does.
"""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import httpx
import torch

from model.embedded import language_model_and_tokenizer

HOST = "127.0.0.1"
MODEL_NAME = "SmolLM2-135M-Instruct"
START_S, STOP_S, _ANSWER_S = 600.0, 60.0, 60.0
CONTEXT_TOKENS = 4096
_OPTIONS = {
    "--dtype": "bfloat16",
    "--max-model-len": CONTEXT_TOKENS,
    "--generation-config": "vllm",  # nothing from the checkpoint changes how the judge is sampled
    # under a JSON schema that allows blanks anywhere, so small a model writes them until it is cut off
    "--structured-outputs-config.backend": "xgrammar",
    "--structured-outputs-config.disable_any_whitespace": "true",
}
_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
_COUNTER = re.compile(r"^(\w[\w:]*)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


class ServerError(RuntimeError):
    """A server that cannot be started; one line."""


class Counts(NamedTuple):
    """What a server has done since it began: requests for chat completions, whatever came of them, and tokens."""

    num_requests: int
    num_prompt_tokens: int
    num_reply_tokens: int

    def since(self, before: "Counts") -> "Counts":
        """What came after."""
        return Counts(*(now - then for now, then in zip(self, before, strict=True)))


def write_checkpoint(folder: Path) -> None:
    """SmolLM2-135M-Instruct in bfloat16, as vLLM loads it: it does not read the packaged GGUF file."""
    model, tokenizer = language_model_and_tokenizer()
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def vllm_server(python: Path, checkpoint: Path, log: Path) -> Iterator[str]:
    """The address of a server, as http://127.0.0.1:8000; it and its children are gone afterwards, whatever happens.

    `python` is that of vLLM's environment; `log` takes what the server prints. Raises ServerError where it does not
    start.
    """
    if not python.exists():
        raise ServerError(f"there is no {python}; `make judge` installs vLLM there")
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    options = [str(word) for option in _OPTIONS.items() for word in option]
    address = ["--host", HOST, "--port", str(port), "--served-model-name", MODEL_NAME]
    command = [
        str(python.absolute()),
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(checkpoint.absolute()),
    ]
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*command, *address, *options, "--enforce-eager"],
            cwd=log.parent,  # where the engine's own packages cannot be taken for vLLM's
            env=os.environ | _ENVIRONMENT,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        url = f"http://{HOST}:{port}"
        _wait(server, url, log)
        yield url
    finally:
        _stop(server)


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


def _wait(server: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        with suppress(httpx.RequestError):
            if httpx.get(f"{url}/health", trust_env=False, timeout=_ANSWER_S).is_success:
                return
        if server.poll() is not None:
            raise ServerError(f"vLLM ended with status {server.returncode}; the last lines of {log} say why")
        time.sleep(1)
    raise ServerError(f"vLLM did not answer in {START_S:g} s; {log} says how far it came")


def _stop(server: "subprocess.Popen[bytes]") -> None:
    server.terminate()
    try:
        with suppress(subprocess.TimeoutExpired):
            server.wait(STOP_S)
    finally:  # also where a second signal cuts the wait short
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)  # the engine's processes, where their parent could not end them
        server.wait()
