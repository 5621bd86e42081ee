"""Which engine stands behind which agent: the one place where profiles become objects."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from agents.analyzer import Analyzer
from agents.annotator import Annotator
from agents.base import Agent, AsyncAgent, MaskTracker
from agents.chat_analyzer import ChatAnalyzer
from agents.chat_annotator import ChatAnnotator
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
from flows.profile_config import (
    ROLES,
    FlowSegmenter,
    GroundedSegmenter,
    LocalRefiner,
    MeasuringAnnotator,
    PaintedSegmenter,
    ParserAnalyzer,
    Profile,
    Role,
    Sam3Segmenter,
    SecondLookReviewer,
    SegmenterProfile,
    ServedAnalyzer,
    ServedAnnotator,
    ServedRefiner,
    ServedReviewer,
)
from infra.decode_cache import DecodeCache
from infra.settings import settings
from infra.structured_chat import StructuredChat
from infra.weights import CATALOGUE, weight_label
from schemas.label import AgentLabel
from schemas.record import Record

AnyAgent = Agent[Any, Any]
AnyAsyncAgent = AsyncAgent[Any, Any]


class Site(Record):
    """Where a worker finds the videos and may keep decoded frames."""

    videos_root: str
    frames_dir: str


def agent_labels(profile: Profile) -> dict[Role, AgentLabel]:
    """What every agent of a profile is made of; loads nothing. Reads the model folders that the profile names, to hash
    them, and raises CheckpointError where one is not on this machine.
    """
    nowhere = Site(videos_root="", frames_dir="")
    return {role: _label(role, profile, nowhere) for role in ROLES}


def required_weights(labels: Mapping[Role, AgentLabel]) -> tuple[str, ...]:
    """Names of the packaged weights that the labelled agents load; model folders that a profile names are none."""
    packaged = {weight_label(name): name for name in CATALOGUE}
    return tuple(
        sorted({packaged[weight] for label in labels.values() for weight in label.weights if weight in packaged})
    )


def required_checkpoints(profile: Profile) -> tuple[str, ...]:
    """The model folders that the profile names, as it names them."""
    match profile.segmenter:
        case GroundedSegmenter() as section:
            return (section.detector.model, section.mask_model.model, section.video_model.model)
        case Sam3Segmenter() as section:
            return (section.tracker.model,)
        case _:
            return ()


def without_checkpoints(profile: Profile) -> Profile:
    """The profile with no engine that needs a model folder, to tell what else it needs where a folder is missing."""
    if not required_checkpoints(profile):
        return profile
    return profile.model_copy(update={"segmenter": PaintedSegmenter(engine="painted-truth")})


def annotator_needs(profile: Profile) -> Literal["mentions", "tracks"]:
    """What the profile's annotator engine declares to read."""
    engines: dict[str, type[Annotator] | type[ChatAnnotator]] = {"measured-facts": Annotator, "chat": ChatAnnotator}
    return engines[profile.annotator.engine].needs


def agent_factory(role: Role, profile: Profile, site: Site) -> Callable[[], AnyAgent]:
    """A picklable maker of one agent, for workers."""
    return partial(make_agent, role, profile, site)


def make_chat_agent(role: Role, profile: Profile, site: Site) -> AnyAsyncAgent:
    """One agent behind the chat servers that its profile names; nothing is opened before its `setup`.

    Answers are kept in this machine's cache folder. Raises ValueError for an agent behind no server.
    """
    answers = settings().cache_dir / "answers" / role
    match getattr(profile, role):
        case ServedAnalyzer() as section:
            return ChatAnalyzer(section.config, StructuredChat(section.chat, answers, section.config.max_reasks))
        case ServedAnnotator() as section:
            chat = StructuredChat(section.chat, answers, section.config.max_reasks)
            return ChatAnnotator(section.config, chat, _frames(profile, site))
        case ServedReviewer() as section:
            asked = StructuredChat(section.captioner, answers, section.config.max_reasks)
            chat = StructuredChat(section.chat, answers, section.config.max_reasks)
            return ChatReviewer(section.config, ChatRegionCaptioner(asked), chat, _frames(profile, site))
        case ServedRefiner() as section:
            chat = StructuredChat(section.chat, answers, section.config.max_reasks)
            return ChatRefiner(section.config, chat, _before_refiner(profile, site))
    raise ValueError(f"the {role} of profile {profile.name!r} is behind no chat server")


def make_agent(role: Role, profile: Profile, site: Site) -> AnyAgent:
    """One agent with the engines that its profile names; nothing is loaded before its `setup`.

    An agent behind a chat server is made by `make_chat_agent`.
    """
    frames = _frames(profile, site)
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
            assert isinstance(profile.reviewer, SecondLookReviewer), "a chat agent has a maker of its own"
            return Reviewer(
                profile.reviewer.config, frames, EfficientNetLite3(), MiniLm(), tuple(COCO_CLASSES.values())
            )
        case "refiner":
            assert isinstance(profile.refiner, LocalRefiner), "a chat agent has a maker of its own"
            model = SmolLm() if profile.refiner.engine == "smollm2-135m" else None
            return Refiner(profile.refiner.config, model, _before_refiner(profile, site))


def _label(role: Role, profile: Profile, site: Site) -> AgentLabel:
    if profile.chat(role):
        return make_chat_agent(role, profile, site).label()
    return make_agent(role, profile, site).label()


def _frames(profile: Profile, site: Site) -> DecodeCache:
    return DecodeCache(Path(site.videos_root), Path(site.frames_dir), profile.decode_cache_mib * 2**20)


def _before_refiner(profile: Profile, site: Site) -> tuple[AgentLabel, ...]:
    return tuple(_label(role, profile, site) for role in ROLES if role != "refiner")


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
