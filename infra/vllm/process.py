"""One vLLM server: started in its own environment, waited for, watched, and ended with all of its processes.

vLLM lives in an environment of its own: it wants an older FastAPI than Prefect does.
"""

import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import httpx

from infra.checkpoints import CheckpointError, checkpoint_folder
from infra.child import death_of
from infra.vllm import keeper
from infra.vllm.place import Place
from infra.vllm.settings import VllmSettings, look_for_vllm, vllm_python

LOOPBACK = "127.0.0.1"
_STOP_S = 20.0
_ANSWER_S = 10.0
_LOOK_S = 0.5
_TOLD_LINES = 20
_TOLD_CHARS = 3000
_TAIL_BYTES = 20_000
_DEFAULTS: Mapping[str, str | int | float | bool] = {
    "generation-config": "vllm",  # nothing from the checkpoint changes how it is sampled
    # under a JSON schema that allows blanks anywhere, small models write them until they are cut off, SmolLM2 each time
    "structured-outputs-config.backend": "xgrammar",
    "structured-outputs-config.disable_any_whitespace": True,
}
_NOT_FOR_IT = ("RAY_", "PYTHON", "VIRTUAL_ENV")
"""Variables that lead it to the modules of this environment, or to the Ray of this run."""


class VllmError(RuntimeError):
    """A server that cannot be started, or that ended; the last lines of its log follow where there are any."""


class VllmProcess:
    """A server that is starting, answers, or has ended; as a context manager it is stopped on leaving.

    `models` are the names by which it serves its model. It listens at `host` on a free port, and with a `key` answers
    nobody else. It ends when this process does, however that ends.
    """

    def __init__(
        self, vllm: VllmSettings, models: Sequence[str], log: Path, host: str = LOOPBACK, key: str = ""
    ) -> None:
        """Start it; what it prints is put at the end of `log`. Raises VllmError where something of it is not there."""
        if missing := look_for_vllm(vllm).fault:
            raise VllmError(missing)
        self._log = log
        self._port = _free_port(host)
        self.place = Place(url=f"http://{host}:{self._port}", key=key)
        with log.open("ab") as output:  # a start before this one may have said why it failed
            output.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC: vLLM {vllm.name} is started\n".encode())
            output.flush()
            self._log_begin = output.tell()
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", keeper.__file__, str(_STOP_S)),
                    *command(vllm, models, host, self._port),
                ],
                cwd=log.parent,  # where the engine's own packages cannot be taken for vLLM's
                env=environment(vllm, key),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def end(self) -> str:
        """How it ended, with the last lines of its log; empty while it runs."""
        status = self._process.poll()
        return "" if status is None else f"vLLM {death_of(status)}{self._tail()}"

    def wait_healthy(self, timeout_s: float, given_up: threading.Event | None = None) -> None:
        """Return once it answers; raises VllmError where it does not in time, ends, or is given up meanwhile."""
        end_s = time.monotonic() + timeout_s
        given_up = given_up or threading.Event()
        while not given_up.wait(_LOOK_S):
            if how := self.end:
                raise VllmError(how)
            if is_healthy(self.place.url):
                return
            if time.monotonic() > end_s:
                raise VllmError(f"vLLM did not answer in {timeout_s:g} s{self._tail()}")
        raise VllmError("vLLM was given up while it started")

    def stop(self) -> None:
        """End it and its children; what is left of them after some seconds is killed."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_S + 5)
        finally:
            self._process.kill()
            self._process.wait()

    def _tail(self) -> str:
        with self._log.open("rb") as file:
            file.seek(max(self._log_begin, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        said = "\n".join(lines[-_TOLD_LINES:])[-_TOLD_CHARS:]
        return f"; the last lines of {self._log}:\n{said}" if said else f"; it wrote nothing to {self._log}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


@contextmanager
def vllm_server(vllm: VllmSettings, models: Sequence[str], log: Path) -> Iterator[str]:
    """The address of one server on this machine, as http://127.0.0.1:8000, once it answers; it and its children are
    gone afterwards, whatever happens.

    `models` are the names by which it serves its model; `log` takes what it prints. Raises VllmError where it does not
    start.
    """
    with VllmProcess(vllm, models, log) as server:
        server.wait_healthy(vllm.start_timeout_s)
        yield server.place.url


def is_healthy(url: str, timeout_s: float = _ANSWER_S) -> bool:
    """Whether a server says that it is well."""
    with suppress(httpx.RequestError):
        return httpx.get(f"{url}/health", trust_env=False, timeout=timeout_s).is_success
    return False


def command(vllm: VllmSettings, models: Sequence[str], host: str, port: int) -> list[str]:
    """The command line of a server; raises VllmError where its model is not on this machine."""
    try:
        model = checkpoint_folder(vllm.model).absolute()
    except CheckpointError as error:
        raise VllmError(f"vLLM {vllm.name}: {error}") from error
    given = ["--model", str(model), "--host", host, "--port", str(port), "--served-model-name", *models]
    given += ["--dtype", vllm.dtype, "--max-model-len", str(vllm.max_model_len)]
    given.append("--disable-uvicorn-access-log")  # a line for each request would hide what went wrong
    options = dict(_DEFAULTS)
    if vllm.gpus:
        given += ["--gpu-memory-utilization", str(vllm.gpu_memory_utilization)]
        given += ["--tensor-parallel-size", str(math.ceil(vllm.gpus))]
    else:
        options["enforce-eager"] = True  # on processors compiling takes minutes and gives small models little
    return [
        *(str(vllm_python(vllm)), "-m", "vllm.entrypoints.openai.api_server"),
        *given,
        *(word for name, value in (options | vllm.options).items() for word in _words(name, value)),
    ]


def _words(name: str, value: str | int | float | bool) -> list[str]:
    if not isinstance(value, bool):
        return [f"--{name}", str(value)]
    if "." in name:
        return [f"--{name}", str(value).lower()]
    return [f"--{name}" if value else f"--no-{name}"]


def environment(vllm: VllmSettings, key: str) -> dict[str, str]:
    """The variables of a server: this process's, but for those that lead elsewhere; its key is not on its command
    line, where all users of the machine could read it.
    """
    found = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_FOR_IT)}
    found |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    found.pop("VLLM_API_KEY", None)
    if key:
        found["VLLM_API_KEY"] = key
    if not vllm.gpus:
        # by itself vLLM binds its threads to the first cores, and each replica of a machine to the same ones
        threads = str(max(1, int(vllm.cpus)))
        found |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": threads}
        found |= {"VLLM_CPU_KVCACHE_SPACE": str(vllm.cpu_cache_gib), "CUDA_VISIBLE_DEVICES": ""}
    return found


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
