"""What the doctor looks at of servers: Prefect, Ray, vLLM, chat servers, and the ports of those that `up` starts.

Nothing is started, and Prefect is loaded only where its own settings may name a server.
"""

import asyncio
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np

from flows.finding import Finding
from flows.local_ray import DASHBOARD_PORT, METRICS_PORT, running_ray
from flows.profile_config import ROLES, Profile
from flows.server import HOST, api_answers, named_api, running_server
from flows.started import is_free
from infra.chat import ChatError, ChatLostError, ChatSettings, ImagePart, Message, TextPart
from infra.chat_client import ChatClient
from infra.pictures import jpeg
from infra.ray_address import LOOPBACK, knock
from infra.vllm.settings import VERSION, VllmSettings, look_for_vllm, vllm_mend, vllm_python

SERVER_PORT = 4200
_PROBE_S = 60.0
_PICTURE_PX = 64


def check_prefect() -> Finding:
    """Whether the server that runs would report to answers."""
    if (named := named_api()) is None:
        detail = "not running: a build starts a temporary one; videorefer up keeps one with its page"
        return Finding(what="Prefect", ok=True, detail=detail)
    ok = api_answers(named)
    mend = "" if ok else "start that server, or unset PREFECT_API_URL and: videorefer up"
    return Finding(what="Prefect", ok=ok, detail=f"{named} {'answers' if ok else 'does not answer'}", mend=mend)


def check_ray(address: str | None) -> Finding:
    """Whether the cluster that runs would join answers."""
    if address is None:
        ray = running_ray()
        detail = ray.address if ray else "not running: each run starts a small one; videorefer up keeps one"
        return Finding(what="Ray", ok=True, detail=detail)
    try:
        found = knock(address)
    except (OSError, ValueError) as error:
        mend = "start it there (ray start --head), or leave --ray out for a Ray of this machine"
        return Finding(what="Ray", ok=False, detail=f"{address} does not answer: {error}", mend=mend)
    return Finding(what="Ray", ok=True, detail=f"{found} answers")


def check_ports() -> list[Finding]:
    """Whether the ports that `videorefer up` takes are free, or held by what it started; nothing else needs them."""
    server, ray = running_server(), running_ray()
    server_port = urlsplit(server.url).port if server else SERVER_PORT
    page_port = urlsplit(ray.dashboard_url).port if ray else DASHBOARD_PORT
    return [
        _port("Prefect server", HOST, server_port or SERVER_PORT, bool(server), "--port"),
        _port("Ray dashboard", LOOPBACK, page_port or DASHBOARD_PORT, bool(ray), "--ray-dashboard-port"),
        _port("Ray metrics", "", METRICS_PORT, bool(ray), "--ray-metrics-port"),
    ]


def _port(whose: str, host: str, port: int, is_ours: bool, option: str) -> Finding:
    free = is_free(host, port)
    state = "free" if free else "held by what videorefer up started" if is_ours else "taken by something else"
    mend = "" if free or is_ours else f"videorefer up {option} with another port; a build alone needs none"
    return Finding(what=f"port {port}", ok=True, detail=f"{whose}: {state}", mend=mend)


def check_vllms(profile: Profile, ray_address: str | None) -> list[Finding]:
    """Whether vLLM and its model are there for each server that a run starts; a cluster's are not seen here."""
    return [_vllm(vllm, ray_address) for vllm in profile.vllm]


def _vllm(vllm: VllmSettings, ray_address: str | None) -> Finding:
    what = f"vLLM {vllm.name}"
    if ray_address is not None:
        detail = f"a run starts it on machines of {ray_address}, of which nothing is seen from here"
        return Finding(what=what, ok=True, detail=detail, mend="ask the doctor there, or have it started with --trial")
    found = look_for_vllm(vllm)
    if found.fault:
        detail, _, mend = found.fault.removeprefix(f"{what}: ").partition("; ")
        return Finding(what=what, ok=False, detail=detail, mend=mend)
    detail = f"{vllm.model} with vLLM {found.version or '(which?)'} of {vllm_python(vllm)}, started by the run"
    # wheels for processors or one CUDA version say so after a plus
    if found.version and found.version.partition("+")[0] != VERSION:
        return Finding(what=what, ok=True, detail=f"{detail}; {VERSION} is what was tried", mend=vllm_mend(vllm))
    return Finding(what=what, ok=True, detail=detail)


class ChatSection(NamedTuple):
    """A chat server that a profile names, where it does so, and whether the model there must see."""

    place: str
    chat: ChatSettings
    sees: bool


def chat_sections(profile: Profile) -> Iterator[ChatSection]:
    """The chat servers of a profile's agents."""
    for role in ROLES:
        for name, chat in profile.chats(role).items():
            yield ChatSection(f"{role}.{name}", chat, name == "captioner" or role == "annotator")


def check_chats(profile: Profile) -> list[Finding]:
    """One finding for each chat section: whether its server answers, has the model, and takes a picture if it must."""
    return asyncio.run(_ask_all(tuple(chat_sections(profile))))


async def _ask_all(sections: Sequence[ChatSection]) -> list[Finding]:
    return list(await asyncio.gather(*map(_ask, sections)))


async def _ask(section: ChatSection) -> Finding:
    chat, what = section.chat, f"chat {section.place}"
    server = f"{chat.model} at {chat.base_url}"
    if chat.replicas_name:
        return Finding(what=what, ok=True, detail=f"{server}: started by the run")
    few = {"max_attempts": 1, "max_tokens": min(chat.max_tokens, 16), "timeout_s": min(chat.timeout_s, _PROBE_S)}
    words = "Reply with the word: yes"
    try:
        async with ChatClient(chat.model_copy(update=few)) as client:
            await client.complete((Message(role="user", content=words),))
            if section.sees:
                try:
                    await client.complete((Message(role="user", content=(_picture(), TextPart(text=words))),))
                except ChatError as error:
                    mend = f"name a model that sees in [{section.place}], or serve this one with its pictures allowed"
                    return Finding(what=what, ok=False, detail=f"it takes no picture: {error}", mend=mend)
    except ChatError as error:
        mend = f"start the server, or name another in [{section.place}]"
        if not isinstance(error, ChatLostError):
            mend = f"mend model, address or key in [{section.place}]"
        return Finding(what=what, ok=False, detail=str(error), mend=mend)
    return Finding(what=what, ok=True, detail=f"{server} answers{' and sees' if section.sees else ''}")


def _picture() -> ImagePart:
    grey = np.full((_PICTURE_PX, _PICTURE_PX, 3), 128, np.uint8)
    return ImagePart.of_jpeg(jpeg(grey, 80))
