"""A stand-in for vLLM's interpreter: a program that takes its command line, says that it is well, and echoes."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from infra.vllm.settings import VllmSettings

PROGRAM = """#!{python} -S
import http.server, json, os, signal, subprocess, sys, time
from pathlib import Path

if sys.argv[1] == "-I":
    sys.exit({lacks_vllm})
home = Path({home!r})
mode = lambda: (home / "mode").read_text()
if (home / "fail once").exists():
    try:
        (home / "fail once").unlink()
    except FileNotFoundError:
        pass  # another was faster
    else:
        print("OSError: address in use")
        sys.exit(1)
if mode() == "exit":
    print("first line", *["more"] * 50, "ValueError: no such model", sep="\\n")
    sys.exit(3)
if mode() == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

def option(name):
    return sys.argv[sys.argv.index(name) + 1]

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        while mode() == "hang":
            time.sleep(0.05)
        self.answer(503 if mode() == "mute" else 200, {{"version": "0.0-stub"}})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        key = os.environ.get("VLLM_API_KEY")
        if key and self.headers["authorization"] != "Bearer " + key:
            return self.answer(401, {{"error": {{"message": "no such key"}}}})
        with (home / "served").open("a") as served:
            served.write(f"{{os.getpid()}}\\n")
        if mode() == "broken":
            return self.answer(500, {{"error": {{"message": "engine dead"}}}})
        time.sleep({delay_s})
        text = "echo " + asked["messages"][-1]["content"]
        if (home / "reply.py").exists():
            exec((home / "reply.py").read_text(), found := {{}})
            text = found["reply"](asked)
        self.answer(200, {{"model": asked["model"], "choices": [
            {{"message": {{"content": text}}, "finish_reason": "stop"}}]}})

    def answer(self, status, body):
        body = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass

engine = subprocess.Popen(["sleep", "600"])
time.sleep({start_s})
note = {{"pid": os.getpid(), "engine": engine.pid, "argv": sys.argv[1:], "environment": dict(os.environ)}}
(home / "servers" / f"{{time.time_ns()}}.json").write_text(json.dumps(note))
print("up", flush=True)
http.server.ThreadingHTTPServer((option("--host"), int(option("--port"))), Handler).serve_forever()
"""


class StubVllm:
    """The program at `python`, and a folder by which it is told what to be and tells who it is."""

    def __init__(self, folder: Path) -> None:
        self.home = folder
        (folder / "servers").mkdir(parents=True)
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text("{}")
        (folder / "model" / "a.safetensors").touch()
        self.python = folder / "python"
        self.write()
        self.be("serve")

    def write(self, delay_s: float = 0.0, start_s: float = 0.0, lacks_vllm: bool = False) -> None:
        """The program, with seconds until it listens and seconds per reply."""
        filled = PROGRAM.format(
            python=sys.executable,
            home=str(self.home),
            delay_s=delay_s,
            start_s=start_s,
            lacks_vllm=int(lacks_vllm),
        )
        beside = self.python.with_suffix(".new")
        beside.write_text(filled)
        beside.chmod(0o755)
        beside.replace(self.python)

    def be(self, mode: str) -> None:
        """`serve`; `mute`: never well; `hang`: no word on its health; `exit`: ends at once; `broken`: replies are
        errors; `stubborn`: no SIGTERM.
        """
        beside = self.home / "mode.new"
        beside.write_text(mode)
        beside.replace(self.home / "mode")

    def fail_once(self) -> None:
        """The next that starts ends at once."""
        (self.home / "fail once").touch()

    def script(self, reply: str) -> None:
        """Python with a function `reply`, from a question's payload to the text of its answer; without, it echoes."""
        (self.home / "reply.py").write_text(reply)

    def settings(self, **changes: object) -> VllmSettings:
        """A server on processors by this program."""
        given = {"name": "text", "model": str(self.home / "model"), "python": str(self.python), "gpus": 0, "cpus": 0.5}
        return VllmSettings.model_validate(given | changes)

    def notes(self) -> list[dict[str, object]]:
        """What the servers that came up so far said of themselves, the oldest first."""
        return [json.loads(path.read_text()) for path in sorted((self.home / "servers").glob("*.json"))]

    def pids(self) -> list[int]:
        """Servers and their engines that were started so far."""
        return [int(str(note[name])) for note in self.notes() for name in ("pid", "engine")]

    def alive(self) -> list[int]:
        """Those of them that run, a dead one that nobody waited for left out."""
        return [pid for pid in self.pids() if _runs(pid)]

    def all_end(self, within_s: float = 15.0) -> bool:
        """Whether all of them have ended within that time."""
        end_s = time.monotonic() + within_s
        while self.alive() and time.monotonic() < end_s:
            time.sleep(0.05)
        return not self.alive()

    def served(self) -> list[int]:
        """Which process got each request for a completion."""
        with suppress(FileNotFoundError):
            return [int(line) for line in (self.home / "served").read_text().split()]
        return []

    def clean(self) -> None:
        """Kill what a failed test left."""
        for pid in self.alive():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _runs(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


@pytest.fixture
def stub_vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StubVllm]:
    """A stand-in for vLLM that serves at once."""
    stub = StubVllm(tmp_path_factory.mktemp("vllm"))
    yield stub
    stub.clean()
