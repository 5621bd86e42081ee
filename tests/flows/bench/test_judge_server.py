"""The server of `make judge`: what it tells of its work, and what it is started with."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

PROOF = Path(__file__).parents[3] / "proof"
METRICS = """# HELP http_requests_total Requests.
http_requests_total{handler="/v1/chat/completions",method="POST",status="2xx"} 40.0
http_requests_total{handler="/v1/chat/completions",method="POST",status="5xx"} 2.0
http_requests_total{handler="/health",method="GET",status="2xx"} 9.0
http_requests_created{handler="/v1/chat/completions",method="POST",status="2xx"} 1.79e+09
vllm:prompt_tokens_total{engine="0"} 1.4404e+04
vllm:generation_tokens_total{engine="0"} 1404.0
vllm:iteration_tokens_total_count{engine="0"} 7.0
"""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(METRICS.encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def judge_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import sys

    monkeypatch.syspath_prepend(str(PROOF))
    import judge_server

    yield judge_server
    del sys.modules["judge_server"]


def test_a_server_tells_what_it_did(judge_server: Any) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        told = judge_server.counts(url)
        again = judge_server.counts(url)
        server.shutdown()
    assert told == (42, 14404, 1404)
    assert again.since(told) == (0, 0, 0)


def test_the_judge_takes_no_gpu_and_all_processors(judge_server: Any, tmp_path: Path) -> None:
    vllm = judge_server.on_processors(tmp_path)
    assert (vllm.gpus, vllm.dtype, vllm.max_model_len) == (0, "bfloat16", 4096)
    assert vllm.cpus >= 1
