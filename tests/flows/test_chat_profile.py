"""Profiles whose agents are behind a chat server: what may be said of them, what they are labelled, where they work."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agents.texts_on_tracks import ChatRefinerOfTexts, RefinerOfTexts
from flows.pools import Pools
from flows.profile_config import ROLES, Batching, Profile, Resources, load_profile
from flows.profile_files import ProfileError
from flows.wiring import (
    UNKNOWN,
    Site,
    agent_labels,
    annotator_needs,
    identify,
    make_agent,
    make_chat_agent,
    required_weights,
)
from infra.async_pool import AsyncPool
from infra.pool import PoolError
from schemas.clip import Clip
from schemas.mention import MentionSet

SITE = Site(videos_root="", frames_dir="", identity=UNKNOWN)
CHAT = 'chat = { base_url = "http://127.0.0.1:8000/v1", model = "small" }'
WHOLE = f"""
name = "mine"
description = "For a test."
[analyzer]
engine = "chat"
{CHAT}
[segmenter]
engine = "painted-truth"
[annotator]
engine = "measured-facts"
[reviewer]
engine = "second-look+efficientnet-lite3+minilm"
[refiner]
engine = "chat"
{CHAT}
"""

SEEING = WHOLE.replace('engine = "measured-facts"', f'engine = "chat"\n{CHAT}').replace(
    'engine = "second-look+efficientnet-lite3+minilm"',
    f'engine = "chat"\n{CHAT.replace("chat =", "captioner =").replace("small", "seer")}\n{CHAT}',
)
"""Everything but the segmenter is behind a server."""

BY_NOUN = SEEING.replace('[annotator]\nengine = "chat"', '[annotator]\nengine = "chat-by-noun"')
"""The annotator works beside the segmenter."""


def clip(number: int) -> Clip:
    return Clip(
        clip_id=str(number), source_id="s", video="a.mp4", video_sha256="0" * 64, license="CC0", start_s=0, end_s=1,
        start_frame=0, end_frame=30, fps=30, height_px=4, width_px=4, caption="A dog.",
    )  # fmt: skip


def profile_of(tmp_path: Path, text: str = WHOLE) -> Profile:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return load_profile(str(path))


def test_chat_agents_have_a_window_and_no_workers_of_their_own(tmp_path: Path) -> None:
    profile = profile_of(tmp_path, WHOLE.replace('model = "small" }', 'model = "small", concurrency = 48 }', 1))
    analyzer, refiner = profile.chat("analyzer"), profile.chat("refiner")
    assert analyzer is not None
    assert refiner is not None
    assert (analyzer.concurrency, refiner.concurrency) == (48, 8)
    assert [profile.chat(role) for role in ("segmenter", "annotator", "reviewer")] == [None] * 3
    assert {role: profile.workers(role) for role in ROLES} == dict.fromkeys(ROLES, 1)
    kinds = {role: type(profile.batching(role)) for role in ROLES}
    assert kinds == {role: Batching if profile.chat(role) else Resources for role in ROLES}


def test_annotator_and_reviewer_behind_a_server_are_labelled_by_all_their_models(tmp_path: Path) -> None:
    profile = profile_of(tmp_path, SEEING)
    kinds = {role: type(profile.batching(role)) for role in ROLES}
    assert kinds == {role: Resources if role == "segmenter" else Batching for role in ROLES}
    assert annotator_needs(profile) == "tracks"
    labels = agent_labels(profile)
    engines = {role: labels[role].engine for role in ("annotator", "reviewer")}
    assert engines == {"annotator": "chat:small+measured-facts", "reviewer": "chat:seer+chat:small"}
    assert required_weights(labels) == ()
    elsewhere = SEEING.replace("127.0.0.1:8000", "gpu-7:9000").replace('model = "s', 'api_key_env = "KEY", model = "s')
    assert agent_labels(profile_of(tmp_path, elsewhere)) == labels
    other = agent_labels(profile_of(tmp_path, SEEING.replace("seer", "another")))
    assert {role for role in ROLES if other[role] != labels[role]} == {"reviewer"}


def test_a_reviewer_needs_a_model_that_sees(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"reviewer\.captioner"):
        profile_of(tmp_path, SEEING.replace("captioner =", "# captioner ="))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (CHAT, "", "analyzer.chat"),
        ('model = "small"', 'modle = "small"', "unknown key 'analyzer.chat.modle'"),
        ("http://127.0.0.1:8000/v1", "127.0.0.1:8000", "analyzer.chat.base_url"),
        (CHAT, f"{CHAT}\nresources = {{ workers = 2 }}", "unknown key 'analyzer.resources.workers'"),
        (CHAT, f"{CHAT}\nconfig = {{ max_reasks = -1 }}", "analyzer.config.max_reasks"),
        ('"chat"', '"chatty"', "analyzer.engine: must be one of 'spacy-chunks+minilm', 'chat', got 'chatty'"),
    ],
)
def test_a_slip_is_said_with_its_place(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(ProfileError) as caught:
        profile_of(tmp_path, WHOLE.replace(old, new, 1))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_name_the_model_and_need_neither_key_nor_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    keyed = WHOLE.replace('model = "small"', 'model = "small", api_key_env = "NO_SUCH_KEY"')
    labels = agent_labels(profile_of(tmp_path, keyed))
    assert {role: labels[role].engine for role in ("analyzer", "refiner")} == dict.fromkeys(
        ("analyzer", "refiner"), "chat:small"
    )
    assert all(len(labels[role].prompt_hash) == 64 for role in ("analyzer", "refiner"))
    elsewhere = WHOLE.replace("127.0.0.1:8000", "gpu-7:9000")
    assert agent_labels(profile_of(tmp_path, elsewhere)) == labels == agent_labels(profile_of(tmp_path))
    assert agent_labels(profile_of(tmp_path, WHOLE.replace('"small"', '"large"'))) != labels
    assert "smollm2-135m" not in required_weights(labels)


def test_chat_agents_start_no_ray_and_a_key_that_is_not_there_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDEOREFER_CACHE", str(tmp_path))
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    profile = profile_of(tmp_path, WHOLE.replace('model = "small"', 'model = "small", api_key_env = "NO_SUCH_KEY"'))
    job: Any = object()
    with Pools(profile, SITE, None) as pools:
        pool = pools.get("analyzer")
        assert isinstance(pool, AsyncPool)
        assert pools.get("analyzer") is pool
        with pytest.raises(
            PoolError, match=r"^the environment variable NO_SUCH_KEY is not set; it should hold [^\n]+$"
        ):
            list(pool.run(0, [job]))
        assert (pools.started, pools.losses("analyzer")) == (False, 0)


class Counting:
    """An agent that does nothing for a while; counts its jobs in flight."""

    at_once = most_at_once = 0

    async def setup(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def process_one(self, job: Clip) -> MentionSet:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.05)
        self.at_once -= 1
        return MentionSet(clip_id=job.clip_id, mentions=(), rejected=())


def test_jobs_in_flight_are_twice_what_the_widest_of_an_agents_servers_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Counting()
    monkeypatch.setattr("flows.pools.make_chat_agent", lambda *_: agent)
    profile = profile_of(tmp_path, SEEING.replace('model = "seer" }', 'model = "seer", concurrency = 20 }'))
    jobs = [clip(number) for number in range(100)]
    with Pools(profile, SITE, None) as pools:
        assert sum(len(batch.outcomes) for batch in pools.get("reviewer").run(0, jobs)) == 100
    assert agent.most_at_once == 40


def test_an_agent_behind_no_server_has_no_chat(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the segmenter of profile 'mine' is behind no chat server"):
        make_chat_agent("segmenter", profile_of(tmp_path), SITE)


def test_an_annotator_by_noun_knows_no_tracks_and_leaves_the_facts_to_the_refiner(tmp_path: Path) -> None:
    profile = profile_of(tmp_path, BY_NOUN)
    assert annotator_needs(profile) == "mentions"
    assert {role: profile.chat(role) is None for role in ROLES} == {role: role == "segmenter" for role in ROLES}
    labels, others = agent_labels(profile), agent_labels(profile_of(tmp_path, SEEING))
    assert {role for role in ROLES if labels[role] != others[role]} == {"annotator", "refiner"}
    assert (labels["annotator"].engine, labels["refiner"].engine) == ("chat:small", "chat:small")

    def changed_by(config: str) -> set[str]:
        text = BY_NOUN.replace('engine = "chat-by-noun"', f'engine = "chat-by-noun"\nconfig = {{ {config} }}')
        other = agent_labels(profile_of(tmp_path, text))
        return {role for role in ROLES if other[role] != labels[role]}

    assert changed_by("num_pictures = 4") == {"annotator"}
    assert changed_by("future_share = 0.5") == {"refiner"}


@pytest.mark.parametrize("wording", ["template", "chat"])
def test_its_refiner_takes_texts_on_mentions_and_names_who_measured(tmp_path: Path, wording: str) -> None:
    text = BY_NOUN if wording == "chat" else BY_NOUN.split("[refiner]")[0] + '[refiner]\nengine = "template"\n'
    profile = profile_of(tmp_path, text)
    labels = agent_labels(profile)
    site = SITE.model_copy(update={"identity": identify(profile, labels)})
    make = make_chat_agent if wording == "chat" else make_agent
    agent = make("refiner", profile, site)
    assert isinstance(agent, ChatRefinerOfTexts if wording == "chat" else RefinerOfTexts)
    assert agent.label() == labels["refiner"]


def test_a_reviewer_of_measured_facts_cannot_follow_it(tmp_path: Path) -> None:
    second_look = WHOLE.replace('engine = "measured-facts"', f'engine = "chat-by-noun"\n{CHAT}')
    with pytest.raises(ProfileError) as caught:
        profile_of(tmp_path, second_look)
    said = str(caught.value)
    assert "reviewer.engine: got 'second-look+efficientnet-lite3+minilm'" in said
    assert "must be one of 'chat', 'videorefer+chat'" in said
    assert "\n" not in said
    assert len(said) < 400
