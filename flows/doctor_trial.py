"""One clip through every engine of a profile: does each load and work, how fast, and what comes out.

Engines of workers are loaded here; vLLM servers that a run starts are started as it would, one of each.
"""

import asyncio
import functools
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from flows.chain import Chain
from flows.doctor_room import Need, check_room
from flows.finding import Finding
from flows.plan import plan_build
from flows.pools import Pools
from flows.profile_config import ROLES, Profile, Role, load_profile
from flows.step import num_kept
from flows.wiring import Site, agent_labels, annotator_needs, checkpoints_of, identify, make_agent, make_chat_agent
from infra.chat import ChatError
from infra.chat_client import ChatClient
from infra.checkpoints import CheckpointError, checkpoint_folder
from infra.lake import Lake
from infra.structured_chat import Connect
from infra.synthetic import write_clips
from infra.token_count import TokenCount, start_meter
from infra.vllm.settings import look_for_vllm
from infra.weights import WeightError

SEED = 7
STAND_IN = "painted"
"""The profile whose agents stand in for those that fail, so that the ones after these have something to work on."""
_LINE_CHARS = 300


class _Tried(NamedTuple):
    """What one engine gave, and what it took; `gpu_bytes` is the most that torch held on a GPU."""

    output: Any
    load_s: float
    work_s: float
    gpu_bytes: int
    tokens: TokenCount | None


def try_engines(
    profile: Profile, asked: str, say: Callable[[str], None], ray_address: str | None = None
) -> Iterator[Finding]:
    """Make a synthetic clip and take it through the agents of a profile, `asked` for by name or file, in their order; a
    finding for each engine.

    Chat servers are asked as in a build. Those that a run starts are started, on the Ray at `ray_address` if that is
    given, and ended; each has its `start_timeout_s` to answer. Nothing is left behind but answers. Where an engine
    fails, one of the profile `painted` does its part for those after it. `say` is told what is about to be tried.
    """
    one_of_each = tuple(vllm.model_copy(update={"replicas": 1}) for vllm in profile.vllm)
    with tempfile.TemporaryDirectory(prefix="videorefer-trial-") as folder:
        say("making a clip to try")
        try:
            trial = _Trial(profile.model_copy(update={"vllm": one_of_each}), asked, Path(folder), ray_address)
        except WeightError as error:
            yield _failed("trial", asked, error)
            return
        with Pools(trial.profile, trial.site, ray_address, lambda _level, line: say(line)) as pools:
            for role in ROLES:
                say(f"trying the {role}")
                yield trial.of(role, pools)


class _Trial:
    def __init__(self, profile: Profile, asked: str, folder: Path, ray_address: str | None) -> None:
        source = folder / "rows.jsonl"
        source.write_text("\n".join(map(json.dumps, write_clips(folder / "clips", 1, SEED))))
        self.profile, self._stand_in = profile, load_profile(STAND_IN)
        self._asked, self._ray_address = asked, ray_address
        missing = [role for role in ROLES if _missing_model(role, profile)]
        known = profile.model_copy(update={role: getattr(self._stand_in, role) for role in missing})
        labels, lake = agent_labels(known), Lake(folder / "lake")
        self._chain = Chain(lake, labels, annotator_needs(profile))
        plan = plan_build(source, None, lake, self._stand_in, None, lambda _line: None)
        self._clip = plan.clips[0]
        self.site = Site(
            videos_root=str(plan.videos_root), frames_dir=str(folder / "frames"), identity=identify(known, labels)
        )

    def of(self, role: Role, pools: Pools) -> Finding:
        """What becomes of the clip at one agent; what comes out is kept for those after it."""
        what = f"{role} {getattr(self.profile, role).engine}"
        if (job := self._job(role)) is None:
            before = " and ".join(self._chain.upstream[role])
            return Finding(what=what, ok=False, detail=f"not tried: it reads what {before} make", mend="mend those")
        if lacking := self._lacks_server(role):
            self._stand_in_for(role, job)
            return lacking.model_copy(update={"what": what, "detail": f"not tried: {lacking.detail}"})
        try:
            if error := _missing_model(role, self.profile):
                raise error
            tried = _run(role, self.profile, self.site, job, pools.connector(role))
        except Exception as error:  # noqa: BLE001 - whatever an engine raises is what there is to tell
            self._stand_in_for(role, job)
            return _failed(what, self._asked, error)
        self._keep(role, tried.output)
        return Finding(what=what, ok=True, detail=self._told(role, tried))

    def _job(self, role: Role) -> Any:
        return next(iter(self._chain.jobs(role, [self._clip])), None)

    def _lacks_server(self, role: Role) -> Finding | None:
        """What keeps a vLLM server of an agent from starting; else whoever asks it would wait until it has not come."""
        names = {chat.replicas_name for chat in self.profile.chats(role).values()}
        for vllm in self.profile.vllm if names - {""} else ():
            if vllm.name in names and self._ray_address is None and (fault := look_for_vllm(vllm).fault):
                detail, _, mend = fault.partition("; ")
                return Finding(what=vllm.name, ok=False, detail=detail, mend=mend)
        return self._lack_of_room if names - {""} else None

    @functools.cached_property
    def _lack_of_room(self) -> Finding | None:
        needs = [Need(f"vLLM {vllm.name}", 1, vllm.cpus, vllm.gpus) for vllm in self.profile.vllm]
        return next((found for found in check_room(needs, self._ray_address) if not found.ok), None)

    def _stand_in_for(self, role: Role, job: Any) -> None:
        try:
            output = _run(role, self._stand_in, self.site, job, ChatClient).output
        except Exception:  # noqa: BLE001 - what has failed is told already; those after it will say that they were not tried
            return
        if isinstance(output, self._chain.output[role].record):
            self._keep(role, output)

    def _keep(self, role: Role, output: Any) -> None:
        self._chain.store(role).append([(self._chain.keys(self._clip)[role], output)])

    def _told(self, role: Role, tried: _Tried) -> str:
        clip = self._clip
        return ", ".join(
            [
                f"loaded in {tried.load_s:.1f} s, a clip of {clip.end_s - clip.start_s:.1f} s in {tried.work_s:.1f} s: "
                f"{num_kept(tried.output)} {self._chain.output[role].field}",
                f"{len(tried.output.rejected)} dropped",
                *([str(tried.tokens)] if tried.tokens else ()),
                *([f"{tried.gpu_bytes / 2**30:.1f} GiB of GPU memory"] if tried.gpu_bytes else ()),
            ]
        )


def _missing_model(role: Role, profile: Profile) -> CheckpointError | None:
    try:
        for model in checkpoints_of(role, profile):
            checkpoint_folder(model)
    except CheckpointError as error:
        return error
    return None


def _run(role: Role, profile: Profile, site: Site, job: Any, connect: Connect) -> _Tried:
    """Load one agent, hand it one job, and close it; `connect` opens the clients of its chat servers."""
    torch: Any = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    meter, start_s = start_meter(), time.monotonic()
    if profile.chat(role):
        output, loaded_s, end_s = asyncio.run(_ask(role, profile, site, job, connect))
    else:
        agent = make_agent(role, profile, site)
        try:
            agent.setup()
            loaded_s = time.monotonic()
            (output,) = agent.process([job])
            end_s = time.monotonic()
        finally:
            agent.close()
    torch = sys.modules.get("torch")
    gpu_bytes = torch.cuda.max_memory_allocated() if torch and torch.cuda.is_available() else 0
    return _Tried(output, loaded_s - start_s, end_s - loaded_s, gpu_bytes, meter.count)


async def _ask(role: Role, profile: Profile, site: Site, job: Any, connect: Connect) -> tuple[Any, float, float]:
    agent = make_chat_agent(role, profile, site, connect)
    try:
        await agent.setup()
        loaded_s = time.monotonic()
        async with asyncio.timeout(profile.batching(role).timeout_s):
            return await agent.process_one(job), loaded_s, time.monotonic()
    finally:
        await agent.close()


def _failed(what: str, asked: str, error: Exception) -> Finding:
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, WeightError):
        fault, _, mend = said.partition("; ")
    elif isinstance(error, ChatError):
        fault, mend = said, f"mend the chat section of the {what.split()[0]} in the profile, or start its server"
    else:
        fault, mend = f"{type(error).__name__}: {said[:_LINE_CHARS]}", ""
    again = shlex.join(["videorefer", "doctor", "--trial", "--profile", asked])
    return Finding(what=what, ok=False, detail=fault, mend=mend or f"mend what lacks above, then: {again}")
