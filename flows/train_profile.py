"""Training profiles: TOML files that name the base model, what learns and how, the data, and the workers."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from flows.profile_files import ProfileError, read_profile, shipped_names
from infra.builds import KINDS
from model.training.settings import TrainSettings
from schemas.record import Record, Share
from schemas.sample import Kind

FOLDER = "train_profiles"
"""Beside `profiles`, not in it: what lies there is a profile of builds."""


class Network(Record):
    """What shapes a network that is put together from its parts; a saved model has its own. Defaults are the paper's,
    but for `object_position`, which is ours.
    """

    num_frames: PositiveInt = 16
    """Frames that show a scene."""
    num_object_tokens: PositiveInt = 4
    """u of the temporal token merge: the most tokens that stand for one object."""
    connector_depth: PositiveInt = 4
    """Blocks before and after the connector's strided convolution."""
    connector_stride: tuple[PositiveInt, PositiveInt, PositiveInt] = (2, 2, 2)
    """Of that convolution: time, rows, columns."""
    vision_select_layer: int = -2
    """Hidden state that is taken from a transformer tower."""
    object_position: bool = True
    """Embed box and time into the object tokens, which pooled features do not carry."""
    paper_exact: bool = False
    """The official arithmetic, ties and thresholds included; excludes `object_position`."""
    max_length: PositiveInt = 2048
    """Tokens of a sample, those of scene and objects included."""


class EmbeddedNetwork(Record):
    """What shapes the embedded pairing, at the sizes of a laptop; fields as in `Network`."""

    num_frames: PositiveInt = 4
    num_object_tokens: PositiveInt = 4
    connector_depth: PositiveInt = 1
    connector_stride: tuple[PositiveInt, PositiveInt, PositiveInt] = (2, 4, 4)
    object_position: bool = True
    paper_exact: bool = False
    side_px: Annotated[int, Field(ge=16, multiple_of=16)] = 256
    """Width and height to which frames are brought."""
    max_length: PositiveInt = 1024


class EmbeddedBase(Record):
    """The small pairing of packaged weights (`model/embedded.py`): EfficientNet-lite0 and SmolLM2-135M."""

    kind: Literal["embedded"]
    network: EmbeddedNetwork = EmbeddedNetwork()


class FolderBase(Record):
    """A model folder: one that was saved here, or an official VideoRefer checkpoint; its config.json tells which."""

    kind: Literal["model"]
    path: str
    max_length: PositiveInt = 2048
    """Of an official checkpoint, as the next; a model that was saved here brings its own."""
    paper_exact: bool = False
    """Keep the official arithmetic for the official weights; without it, they get ours, which mends its defects. Box
    and time stay out of the object tokens either way, as the checkpoint has no weights for them.
    """


class PairBase(Record):
    """A vision tower and a language model, each a folder that transformers reads; connector and object encoder new."""

    kind: Literal["pair"]
    vision: str
    language: str
    network: Network = Network()


class InitBase(Record):
    """No base in the profile: `videorefer train --init MODEL_DIR` names it."""

    kind: Literal["init"]


Base = Annotated[EmbeddedBase | FolderBase | PairBase | InitBase, Field(discriminator="kind")]


class ExtraData(Record):
    """A JSON or JSONL file of samples that are mixed with those of the build: VideoRefer's format in either schema
    (`annotation` or `masks`), or LLaVA's, of images, videos or text alone.
    """

    path: str
    root: str
    """What its images and videos are relative to."""
    weight: PositiveFloat = 1.0
    """How often an epoch takes each of its samples."""


class DataProfile(Record):
    """What is trained on besides the build's split `train`."""

    kinds: tuple[Kind, ...] = KINDS
    """Kinds of the build's samples that are used; none where a stage trains on other data alone."""
    single_frame_share: Share = 0.5
    """Share of samples whose objects are shown by one masked frame only (paper: half in stage 2.5, all in stage 2)."""
    max_rounds: PositiveInt = 1
    """Samples of one clip that are joined to one conversation at most: its frames are read and seen once for all of
    them. 1 leaves each sample alone, as the official files have it.
    """
    extra: tuple[ExtraData, ...] = ()
    max_masks: PositiveInt = 32
    """Masked frames of one object at most; of more, so many are taken evenly."""
    loader_processes: NonNegativeInt = 0
    """Processes of each worker that read ahead; with 0 it reads by itself."""
    decode_cache_mib: NonNegativeInt = 1024
    """Disk per node for decoded frames, which later epochs read again; with 0 each video is decoded each time."""

    def drawn(self) -> str:
        """What a training draws one after another, in the plural: what its counts count."""
        return "samples" if self.max_rounds == 1 else f"conversations of up to {self.max_rounds} samples"


class WorkerResources(Record):
    """The workers of Ray Train; each is one rank."""

    num: PositiveInt = 1
    cpus: PositiveFloat = 1.0
    """CPU share of one worker."""
    gpus: NonNegativeFloat = 0.0
    """GPUs of one worker."""
    max_failures: NonNegativeInt = 3
    """How often the workers are started again after one died; that of a preempted node counts too."""


class TrainProfile(Record):
    """One full configuration of a training; `settings.num_steps` may be given on the command line."""

    name: str
    description: str
    is_smoke: bool = False
    """Whether what comes of it shows that the machinery runs and claims nothing else, whatever it scores."""
    base: Base
    settings: TrainSettings
    data: DataProfile = DataProfile()
    workers: WorkerResources = WorkerResources()

    def label(self, num_steps: int) -> str:
        """What stands on everything that comes of it."""
        if num_steps == 0:
            return "untrained: 0 steps"
        return f"smoke: {num_steps} steps" if self.is_smoke else f"{num_steps} steps"


def shipped_train_profiles() -> tuple[str, ...]:
    """Names of the training profiles that come with the package."""
    return shipped_names(FOLDER)


def load_train_profile(name_or_file: str, init: str | None = None, num_steps: int | None = None) -> TrainProfile:
    """The shipped training profile of that name, or the one in that TOML file.

    `init` is a model folder that takes the place of the profile's base, or of its path where that is one; `num_steps`
    is the length of the run in place of the profile's. Raises ProfileError as `flows.profile_files.read_profile` does,
    and where no base is named.
    """
    profile = read_profile(name_or_file, FOLDER, TrainProfile)
    if init is not None:
        kept = profile.base if isinstance(profile.base, FolderBase) else FolderBase(kind="model", path=init)
        profile = profile.model_copy(update={"base": kept.model_copy(update={"path": init})})
    if isinstance(profile.base, InitBase):
        raise ProfileError(
            f"profile {name_or_file} names no base model: give one with --init MODEL_DIR, or a [base] in a file of "
            "your own"
        )
    if num_steps is not None:
        length = {"num_steps": num_steps, "epochs": None}
        profile = profile.model_copy(update={"settings": profile.settings.model_copy(update=length)})
    return profile
