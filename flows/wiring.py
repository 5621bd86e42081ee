"""Which engine stands behind which agent: the one place where profiles become objects."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from agents.analyzer import Analyzer
from agents.annotator import Annotator, AnnotatorConfig
from agents.base import Agent, AsyncAgent, MaskTracker
from agents.chat_analyzer import ChatAnalyzer
from agents.chat_annotator import ChatAnnotator
from agents.chat_annotator_by_noun import ChatAnnotatorByNoun
from agents.chat_refiner import ChatRefiner
from agents.chat_reviewer import ChatRegionCaptioner, ChatReviewer
from agents.engines.coco_classes import COCO_CLASSES
from agents.engines.efficientnet import EfficientNetLite3
from agents.engines.flow_tracker import FlowTracker
from agents.engines.grounded_tracker import GroundedTracker
from agents.engines.grounding_dino import GroundingDino
from agents.engines.hq_sam import HqSam
from agents.engines.mini_sam import MiniSam
from agents.engines.minilm import MiniLm
from agents.engines.painted_truth import PaintedTruth
from agents.engines.sam2_video import Sam2Video
from agents.engines.sam3_video import Sam3Tracker
from agents.engines.smollm import SmolLm
from agents.engines.spacy_nouns import SpacyNouns
from agents.engines.ssd_detector import SsdDetector
from agents.refiner import Refiner
from agents.reviewer import Reviewer
from agents.segmenter import Segmenter
from agents.texts_on_tracks import ChatRefinerOfTexts, RefinerOfTexts, label_with_facts
from flows.on_worker import OnWorker
from flows.profile_config import (
    ROLES,
    FlowSegmenter,
    GroundedSegmenter,
    LocalRefiner,
    MeasuringAnnotator,
    PaintedSegmenter,
    ParserAnalyzer,
    Profile,
    RegionModelReviewer,
    Role,
    Sam3Segmenter,
    SecondLookReviewer,
    SegmenterProfile,
    ServedAnalyzer,
    ServedAnnotator,
    ServedAnnotatorByNoun,
    ServedRefiner,
    ServedReviewer,
)
from flows.region_model import RegionModel
from infra.chat import ChatSettings
from infra.chat_client import ChatClient
from infra.checkpoints import check_mark, checkpoint_mark
from infra.decode_cache import DecodeCache
from infra.settings import settings
from infra.structured_chat import Connect, StructuredChat
from infra.vllm.settings import weights_of
from infra.weights import CATALOGUE, weight_label
from schemas.label import AgentLabel
from schemas.record import Record

AnyAgent = Agent[Any, Any]
AnyAsyncAgent = AsyncAgent[Any, Any]


class Identity(Record):
    """What the driver found the agents to be made of: `labels` of all of them, and for each model folder that the
    profile names its `infra.checkpoints.checkpoint_mark`.

    Workers are told. So no other process reads model folders whole, and each can see that those of its machine are the
    labelled ones.
    """

    labels: tuple[AgentLabel, ...]
    marks: dict[str, str]


UNKNOWN = Identity(labels=(), marks={})
"""For agents that are asked for a label, or whose output names no other agent: all but the refiner."""


class Site(Record):
    """Where a worker finds the videos and may keep decoded frames, and who the agents of the build are."""

    videos_root: str
    frames_dir: str
    identity: Identity


def agent_labels(profile: Profile) -> dict[Role, AgentLabel]:
    """What every agent of a profile is made of; loads nothing. Reads the model folders that the profile names, to hash
    them, and raises CheckpointError where one is not on this machine; those of vLLM servers may be elsewhere, and are
    then known by name alone.
    """
    nowhere = Site(videos_root="", frames_dir="", identity=UNKNOWN)
    return {role: _label(role, profile, nowhere) for role in ROLES}


def identify(profile: Profile, labels: Mapping[Role, AgentLabel]) -> Identity:
    """The labels of a profile's agents, from `agent_labels`, and the marks of its model folders."""
    marks = {model: checkpoint_mark(model) for model in required_checkpoints(profile)}
    return Identity(labels=tuple(labels.values()), marks=marks)


def required_weights(labels: Mapping[Role, AgentLabel]) -> tuple[str, ...]:
    """Names of the packaged weights that the labelled agents load; model folders that a profile names are none."""
    packaged = {weight_label(name): name for name in CATALOGUE}
    return tuple(
        sorted({packaged[weight] for label in labels.values() for weight in label.weights if weight in packaged})
    )


def required_checkpoints(profile: Profile) -> tuple[str, ...]:
    """The model folders that the profile names, as it names them."""
    return tuple(model for role in ROLES for model in checkpoints_of(role, profile))


def checkpoints_of(role: Role, profile: Profile) -> tuple[str, ...]:
    """The model folders that one agent loads where it works, as the profile names them."""
    match getattr(profile, role):
        case GroundedSegmenter() as section:
            return (section.detector.model, section.mask_model.model, section.video_model.model)
        case Sam3Segmenter() as section:
            return (section.tracker.model,)
        case RegionModelReviewer() as section:
            return (section.captioner.model,)
        case _:
            return ()


def packaged_weights(profile: Profile) -> tuple[str, ...]:
    """What `required_weights` gives for a profile, also where model folders that it names are missing, and without
    reading any.
    """
    nowhere = Site(videos_root="", frames_dir="", identity=UNKNOWN)
    here = [role for role in ROLES if profile.chat(role) is None and not checkpoints_of(role, profile)]
    return required_weights({role: _label(role, profile, nowhere) for role in here})


def annotator_needs(profile: Profile) -> Literal["mentions", "tracks"]:
    """What the profile's annotator engine declares to read."""
    match profile.annotator:
        case MeasuringAnnotator():
            return Annotator.needs
        case ServedAnnotator():
            return ChatAnnotator.needs
        case ServedAnnotatorByNoun():
            return ChatAnnotatorByNoun.needs


def agent_factory(role: Role, profile: Profile, site: Site) -> Callable[[], AnyAgent]:
    """A picklable maker of one agent, for workers."""
    return partial(make_agent, role, profile, site)


def make_chat_agent(role: Role, profile: Profile, site: Site, connect: Connect = ChatClient) -> AnyAsyncAgent:
    """One agent behind the chat servers that its profile names; nothing is opened before its `setup`.

    Answers are kept in this machine's cache folder. `connect` opens the client of a server. Raises ValueError for an
    agent behind no server.
    """

    def chat(settings: ChatSettings, max_reasks: int) -> StructuredChat:
        return _chat(role, _with_weights(settings, profile), max_reasks, connect)

    match getattr(profile, role):
        case ServedAnalyzer() as section:
            return ChatAnalyzer(section.config, chat(section.chat, section.config.max_reasks))
        case ServedAnnotator() as section:
            asked = chat(section.chat, section.config.max_reasks)
            return ChatAnnotator(section.config, asked, _frames(profile, site))
        case ServedAnnotatorByNoun() as section:
            asked = chat(section.chat, section.config.max_reasks)
            return ChatAnnotatorByNoun(section.config, asked, _frames(profile, site))
        case ServedReviewer() as section:
            captioner = ChatRegionCaptioner(chat(section.captioner, section.config.max_reasks))
            asked = chat(section.chat, section.config.max_reasks)
            return ChatReviewer(section.config, captioner, asked, _frames(profile, site))
        case ServedRefiner() as section:
            asked = chat(section.chat, section.config.max_reasks)
            facts = _facts_for_refiner(profile, site)
            refiner = ChatRefiner(section.config, asked, _before_refiner(site, facts))
            return ChatRefinerOfTexts(refiner, facts) if facts else refiner
    raise ValueError(f"the {role} of profile {profile.name!r} is behind no chat server")


def make_agent(role: Role, profile: Profile, site: Site) -> AnyAgent:
    """One agent with the engines that its profile names; nothing is loaded before its `setup`.

    An agent behind a chat server is made by `make_chat_agent`. Raises CheckpointError where a model folder here is
    not the one that `site.identity` knows.
    """
    frames = _frames(profile, site)
    for folder in site.identity.marks.keys() & set(checkpoints_of(role, profile)):
        check_mark(folder, site.identity.marks[folder])
    match role:
        case "analyzer":
            assert isinstance(profile.analyzer, ParserAnalyzer), "a chat agent has a maker of its own"
            return Analyzer(profile.analyzer.config, SpacyNouns(), MiniLm(), tuple(COCO_CLASSES.values()))
        case "segmenter":
            return Segmenter(profile.segmenter.config, _tracker(profile.segmenter, site, frames), frames)
        case "annotator":
            assert isinstance(profile.annotator, MeasuringAnnotator), "a chat agent has a maker of its own"
            return Annotator(profile.annotator.config, frames)
        case "reviewer":
            if isinstance(profile.reviewer, RegionModelReviewer):
                return OnWorker(_region_reviewer(profile.reviewer, frames))
            assert isinstance(profile.reviewer, SecondLookReviewer), "a chat agent has a maker of its own"
            return Reviewer(
                profile.reviewer.config, frames, EfficientNetLite3(), MiniLm(), tuple(COCO_CLASSES.values())
            )
        case "refiner":
            assert isinstance(profile.refiner, LocalRefiner), "a chat agent has a maker of its own"
            model = SmolLm() if profile.refiner.engine == "smollm2-135m" else None
            facts = _facts_for_refiner(profile, site)
            refiner = Refiner(profile.refiner.config, model, _before_refiner(site, facts))
            return RefinerOfTexts(refiner, facts) if facts else refiner


def _chat(role: Role, chat: ChatSettings, max_reasks: int, connect: Connect = ChatClient) -> StructuredChat:
    return StructuredChat(chat, settings().cache_dir / "answers" / role, max_reasks, connect)


def _with_weights(chat: ChatSettings, profile: Profile) -> ChatSettings:
    """The settings with what the servers compute with, where the profile has the run start them and does not say."""
    if chat.weights or not chat.replicas_name:
        return chat
    (vllm,) = (section for section in profile.vllm if section.name == chat.replicas_name)
    return chat.model_copy(update={"weights": weights_of(vllm)})


def _region_reviewer(section: RegionModelReviewer, frames: DecodeCache) -> ChatReviewer:
    chat = _chat("reviewer", section.chat, section.config.max_reasks)
    return ChatReviewer(section.config, RegionModel(section.captioner), chat, frames)


def _label(role: Role, profile: Profile, site: Site) -> AgentLabel:
    if profile.chat(role):
        return make_chat_agent(role, profile, site).label()
    return make_agent(role, profile, site).label()


def _frames(profile: Profile, site: Site) -> DecodeCache:
    return DecodeCache(Path(site.videos_root), Path(site.frames_dir), profile.decode_cache_mib * 2**20)


def _facts_for_refiner(profile: Profile, site: Site) -> Annotator | None:
    """Who measures the facts where the annotator knows no tracks; None where it has measured them itself."""
    if annotator_needs(profile) == "tracks":
        return None
    shared = profile.annotator.config.model_dump(include=set(AnnotatorConfig.model_fields))
    return Annotator(AnnotatorConfig.model_validate(shared), _frames(profile, site))


def _before_refiner(site: Site, facts: Annotator | None) -> tuple[AgentLabel, ...]:
    return tuple(
        label_with_facts(label, facts) if facts and label.agent == "annotator" else label
        for label in site.identity.labels
        if label.agent != "refiner"
    )


def _tracker(section: SegmenterProfile, site: Site, frames: DecodeCache) -> MaskTracker:
    match section:
        case FlowSegmenter():
            return FlowTracker(SsdDetector(), MiniSam(), frames, section.tracker)
        case PaintedSegmenter():
            return PaintedTruth(Path(site.videos_root))
        case GroundedSegmenter():
            detector, mask_model = GroundingDino(section.detector), HqSam(section.mask_model)
            return GroundedTracker(detector, mask_model, Sam2Video(section.video_model), frames, section.tracker)
        case Sam3Segmenter():
            return Sam3Tracker(section.tracker, frames)
