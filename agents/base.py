"""What an agent is: a plain class, records in, records out, that knows no orchestrator."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from infra.video import Frames, Image
from schemas.clip import Clip
from schemas.label import AgentLabel
from schemas.record import BoxXyxyPx, Record
from schemas.track import ObjectMasks

JobT = TypeVar("JobT", bound=Record, contravariant=True)
OutT = TypeVar("OutT", bound=Record)
OutT_co = TypeVar("OutT_co", bound=Record, covariant=True)


class Agent(Protocol[JobT, OutT]):
    """One of the five roles.

    `setup` loads what is heavy and is called once, in the process that will work; `process` returns one output per
    job, in order, each echoing its job's clip id; `close` frees. `label` loads nothing.
    """

    def label(self) -> AgentLabel:
        """What the agent is made of, for keys and provenance."""

    def setup(self) -> None:
        """Load models."""

    def process(self, jobs: Sequence[JobT]) -> list[OutT]:
        """One output per job, in order."""

    def close(self) -> None:
        """Free what `setup` took."""


class AsyncAgent(Protocol[JobT, OutT_co]):
    """One of the five roles behind a server, with many jobs in flight at once (`infra.workbench.AsyncAgent`)."""

    def label(self) -> AgentLabel:
        """What the agent is made of, for keys and provenance."""

    async def setup(self) -> None:
        """Open what the jobs share, in the event loop that serves them."""

    async def process_one(self, job: JobT) -> OutT_co:
        """The job's output, with its clip id."""

    async def probe(self) -> None:
        """Ask the server what it can answer, and raise where it does not."""

    async def close(self) -> None:
        """Free what `setup` took."""


class FrameSource(Protocol):
    """Exact frames of a clip's video by displayed index, for any number of threads at once."""

    def read(self, clip: Clip, frame_idx: Sequence[int], long_side_px: int) -> Frames:
        """Frames at the given indices, in that order, shrunk so that no side exceeds `long_side_px`.

        Returns (N, height, width, 3) RGB; frames already within the limit keep their size. Raises
        `infra.video.VideoError` where the file does not hold a frame.
        """

    def times_s(self, clip: Clip, frame_idx: Sequence[int]) -> tuple[float, ...]:
        """When the frames at the given indices appear, in seconds from the file's first frame."""


class Engine(Protocol):
    """What every adapter to a model has: a name, its weights by hash, and a lazy load."""

    name: str

    def weights(self) -> tuple[str, ...]:
        """One `name@sha256-prefix` per weight file; loads nothing."""

    def setup(self) -> None:
        """Load the model."""


class Detection(Record):
    """One box of one class in one image."""

    detector_class: str
    score: float
    box_xyxy_px: BoxXyxyPx


class Detector(Engine, Protocol):
    """Boxes of a closed set of classes."""

    classes: tuple[str, ...]

    def detect(self, image: Image) -> list[Detection]:
        """Every box above the engine's floor score, best first, in pixels of `image`."""


class MaskModel(Engine, Protocol):
    """Boxes to masks; the image is embedded once for all of its boxes."""

    def masks(self, image: Image, boxes_xyxy_px: Sequence[BoxXyxyPx]) -> tuple[npt.NDArray[np.bool_], list[float]]:
        """Masks (len(boxes), height, width) and the model's own estimate of each one's IoU."""


class MaskTracker(Engine, Protocol):
    """All objects of the wanted classes through clips, each on its own."""

    def settings(self) -> dict[str, Any]:
        """Everything but the weights that shapes its output, ready for JSON; loads nothing."""

    def track_many(self, asked: Sequence[tuple[Clip, Sequence[str]]]) -> list[list[ObjectMasks]]:
        """For each clip with its classes, in order: one `ObjectMasks` per object found, at the video's own size.

        Best score first. What is found in a clip does not depend on the clips beside it, but for the last bits of
        floating-point sums.
        """


class TextEmbedder(Engine, Protocol):
    """Sentences to unit vectors."""

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(len(texts), dim), each row of length 1."""


class ImageClassifier(Engine, Protocol):
    """Image crops to label probabilities."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, in the order of `probabilities`; known after `setup`."""

    def probabilities(self, image: Image) -> npt.NDArray[np.float32]:
        """(len(labels),), summing to 1."""


class ChatModel(Engine, Protocol):
    """Chat messages to a reply."""

    def reply(self, system: str, user: str, max_tokens: int) -> str:
        """The model's answer, decoded greedily: the same messages give the same reply."""
