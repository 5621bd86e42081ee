"""Profiles: TOML files that name the engine, the resources and the batch size of each agent."""

import difflib
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, Field, ValidationError

from agents.analyzer import AnalyzerConfig
from agents.annotator import AnnotatorConfig
from agents.engines.flow_tracker import FlowTrackerConfig
from agents.refiner import RefinerConfig
from agents.reviewer import ReviewerConfig
from agents.segmenter import SegmenterConfig
from infra.sources import ClipConfig
from schemas.record import Record

Role = Literal["analyzer", "segmenter", "annotator", "reviewer", "refiner"]
ROLES: tuple[Role, ...] = get_args(Role)


class ProfileError(ValueError):
    """A profile that cannot be used, in one line."""


class Resources(Record):
    """What one agent's pool of workers takes."""

    workers: Annotated[int, Field(ge=1)] = 1
    """Actors that load the engine once each."""
    cpus: Annotated[float, Field(gt=0)] = 0.25
    """CPU share of one actor, for Ray's placement."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPU share of one actor."""
    batch_size: Annotated[int, Field(ge=1, le=32)] = 4
    """Clips per micro-batch: the grain of commit and retry."""
    timeout_s: Annotated[float, Field(gt=0)] = 900.0
    """A micro-batch that takes longer is taken for hung; its actor is replaced."""
    max_attempts: Annotated[int, Field(ge=2)] = 2
    """Tries per clip before it is quarantined; the second is alone, so that a bad clip costs itself only."""


class AnalyzerProfile(Record):
    """Caption to mentions."""

    engine: Literal["spacy-chunks+minilm"]
    config: AnalyzerConfig = AnalyzerConfig()
    resources: Resources = Resources()


class SegmenterProfile(Record):
    """Mentions to tracks; `tracker` configures the engine `ssd+minisam+flow` alone."""

    engine: Literal["ssd+minisam+flow", "painted-truth"]
    config: SegmenterConfig = SegmenterConfig()
    tracker: FlowTrackerConfig = FlowTrackerConfig()
    resources: Resources = Resources()


class AnnotatorProfile(Record):
    """Tracks to captions."""

    engine: Literal["measured-facts"]
    config: AnnotatorConfig = AnnotatorConfig()
    resources: Resources = Resources()


class ReviewerProfile(Record):
    """Captions to verdicts."""

    engine: Literal["second-look+efficientnet-lite3+minilm"]
    config: ReviewerConfig = ReviewerConfig()
    resources: Resources = Resources()


class RefinerProfile(Record):
    """Verdicts to samples; `engine` words the detailed captions."""

    engine: Literal["template", "smollm2-135m"]
    config: RefinerConfig = RefinerConfig()
    resources: Resources = Resources()


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
    analyzer: AnalyzerProfile
    segmenter: SegmenterProfile
    annotator: AnnotatorProfile
    reviewer: ReviewerProfile
    refiner: RefinerProfile

    def resources(self, role: Role) -> Resources:
        """The resources of one agent."""
        section: AnalyzerProfile | SegmenterProfile | AnnotatorProfile | ReviewerProfile | RefinerProfile
        section = getattr(self, role)
        return section.resources


def shipped_profiles() -> tuple[str, ...]:
    """Names of the profiles that come with the package."""
    folder = files("flows") / "profiles"
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")))


def load_profile(name_or_file: str) -> Profile:
    """The shipped profile of that name, or the one in that TOML file.

    Raises ProfileError, in one line, for an unknown name, bad TOML, or a key or value that is not allowed; for an
    unknown key the nearest valid one is named.
    """
    if name_or_file in shipped_profiles():
        content = (files("flows") / "profiles" / f"{name_or_file}.toml").read_bytes()
    elif Path(name_or_file).is_file():
        content = Path(name_or_file).read_bytes()
    else:
        near = difflib.get_close_matches(Path(name_or_file).stem, shipped_profiles(), n=1, cutoff=0.0)[0]
        raise ProfileError(
            f"no profile {name_or_file!r}; the nearest is {near!r}: give one of {', '.join(shipped_profiles())}, "
            "or the path of a TOML file"
        )
    try:
        return Profile.model_validate(tomllib.loads(content.decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"profile {name_or_file}: not TOML: {error}") from error
    except ValidationError as error:
        raise ProfileError(f"profile {name_or_file}: {_one_line(error)}") from error


def _one_line(error: ValidationError) -> str:
    # a misspelt key also leaves its right form missing: the typo is what helps
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"{where}: {first['msg']}"
    if first["type"] != "extra_forbidden":
        return f"{where}: {first['msg']}, got {first['input']!r}"
    near = difflib.get_close_matches(where, list(_keys(Profile)), n=1, cutoff=0.0)
    return f"unknown key {where!r}; the nearest valid one is {near[0]!r}"


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")
