"""The server of `make judge`: that it is told when it is up, what it did, and that nothing of it stays."""

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

PROOF = Path(__file__).parents[3] / "proof"
STAND_IN = """#!{python}
import http.server, subprocess, sys
from pathlib import Path

METRICS = '''# HELP http_requests_total Requests.
http_requests_total{{handler="/v1/chat/completions",method="POST",status="2xx"}} 40.0
http_requests_total{{handler="/v1/chat/completions",method="POST",status="5xx"}} 2.0
http_requests_total{{handler="/health",method="GET",status="2xx"}} 9.0
http_requests_created{{handler="/v1/chat/completions",method="POST",status="2xx"}} 1.79e+09
vllm:prompt_tokens_total{{engine="0"}} 1.4404e+04
vllm:generation_tokens_total{{engine="0"}} 1404.0
vllm:iteration_tokens_total_count{{engine="0"}} 7.0
'''

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(METRICS.encode())

engine = subprocess.Popen(["sleep", "600"])
Path("engine").write_text(str(engine.pid))
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def judge_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(PROOF))
    import judge_server

    yield judge_server
    del sys.modules["judge_server"]


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_a_server_tells_what_it_did_and_leaves_no_process_even_after_an_error(
    judge_server: Any, tmp_path: Path
) -> None:
    python = executable(tmp_path / "python", STAND_IN.format(python=sys.executable))
    with (
        suppress(ZeroDivisionError),
        judge_server.vllm_server(python, tmp_path / "checkpoint", tmp_path / "server.log") as url,
    ):
        told = judge_server.counts(url)
        assert told == (42, 14404, 1404)
        assert judge_server.counts(url).since(told) == (0, 0, 0)
        raise ZeroDivisionError
    with pytest.raises(httpx.RequestError):
        httpx.get(url, trust_env=False)
    engine = int((tmp_path / "engine").read_text())
    assert ended(engine), f"process {engine} still runs"


def test_a_server_that_does_not_start_is_told_in_one_line(judge_server: Any, tmp_path: Path) -> None:
    for python, told in (
        (executable(tmp_path / "python", "#!/bin/sh\necho no such module\nexit 3\n"), r"status 3; .*server\.log"),
        (tmp_path / "absent", "make judge"),
    ):
        with (
            pytest.raises(judge_server.ServerError, match=told),
            judge_server.vllm_server(python, tmp_path / "checkpoint", tmp_path / "server.log"),
        ):
            pass
    assert (tmp_path / "server.log").read_text() == "no such module\n"


def ended(pid: int) -> bool:
    """Whether a process ends within 10 s; one that nobody has waited for counts as ended."""
    for _ in range(1000):
        with suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                time.sleep(0.01)
                continue
        return True
    return False
