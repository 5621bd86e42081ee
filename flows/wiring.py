"""Which engine stands behind which agent: the one place where profiles become objects."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from agents.analyzer import Analyzer
from agents.annotator import Annotator
from agents.base import Agent, MaskTracker
from agents.engines.coco_classes import COCO_CLASSES
from agents.engines.efficientnet import EfficientNetLite3
from agents.engines.flow_tracker import FlowTracker
from agents.engines.mini_sam import MiniSam
from agents.engines.minilm import MiniLm
from agents.engines.painted_truth import PaintedTruth
from agents.engines.smollm import SmolLm
from agents.engines.spacy_nouns import SpacyNouns
from agents.engines.ssd_detector import SsdDetector
from agents.refiner import Refiner
from agents.reviewer import Reviewer
from agents.segmenter import Segmenter
from flows.profile_config import ROLES, Profile, Role
from infra.decode_cache import DecodeCache
from schemas.label import AgentLabel
from schemas.record import Record

AnyAgent = Agent[Any, Any]


class Site(Record):
    """Where a worker finds the videos and may keep decoded frames."""

    videos_root: str
    frames_dir: str


def agent_labels(profile: Profile) -> dict[Role, AgentLabel]:
    """What every agent of a profile is made of; loads nothing and reads no weight."""
    nowhere = Site(videos_root="", frames_dir="")
    return {role: make_agent(role, profile, nowhere).label() for role in ROLES}


def required_weights(labels: Mapping[Role, AgentLabel]) -> tuple[str, ...]:
    """Names of the packaged weights that the labelled agents load."""
    return tuple(sorted({weight.split("@")[0] for label in labels.values() for weight in label.weights}))


def annotator_needs(profile: Profile) -> Literal["mentions", "tracks"]:
    """What the profile's annotator engine declares to read."""
    engines = {"measured-facts": Annotator}
    return engines[profile.annotator.engine].needs


def agent_factory(role: Role, profile: Profile, site: Site) -> Callable[[], AnyAgent]:
    """A picklable maker of one agent, for workers."""
    return partial(make_agent, role, profile, site)


def make_agent(role: Role, profile: Profile, site: Site) -> AnyAgent:
    """One agent with the engines that its profile names; nothing is loaded before its `setup`."""
    frames = DecodeCache(Path(site.videos_root), Path(site.frames_dir), profile.decode_cache_mib * 2**20)
    match role:
        case "analyzer":
            return Analyzer(profile.analyzer.config, SpacyNouns(), MiniLm(), tuple(COCO_CLASSES.values()))
        case "segmenter":
            return Segmenter(profile.segmenter.config, _tracker(profile, site, frames), frames)
        case "annotator":
            return Annotator(profile.annotator.config, frames)
        case "reviewer":
            return Reviewer(
                profile.reviewer.config, frames, EfficientNetLite3(), MiniLm(), tuple(COCO_CLASSES.values())
            )
        case "refiner":
            upstream = tuple(make_agent(other, profile, site).label() for other in ROLES if other != "refiner")
            chat = SmolLm() if profile.refiner.engine == "smollm2-135m" else None
            return Refiner(profile.refiner.config, chat, upstream)


def _tracker(profile: Profile, site: Site, frames: DecodeCache) -> MaskTracker:
    if profile.segmenter.engine == "painted-truth":
        return PaintedTruth(Path(site.videos_root))
    return FlowTracker(SsdDetector(), MiniSam(), frames, profile.segmenter.tracker)
