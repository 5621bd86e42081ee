"""The dataset card of a build: the README.md that dataset hubs and readers of a folder look for first."""

import typing
from collections.abc import Sequence

import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined

from flows.counts import BuildCounts
from flows.profile_config import Profile
from schemas.arrow import arrow_schema
from schemas.label import AgentLabel
from schemas.sample import MAX_MASKED_FRAMES, SCHEMA_VERSION, Kind, Sample

HUB_LICENSES = frozenset(
    {
        *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0"),
        *("cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
        *("cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "pddl", "odc-by", "odbl"),
    }
)
"""Licence names that the Hugging Face hub knows; any other is `other` in the card's header."""

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))

_MEANINGS = {
    "sample_id": "names the row, the same in every build that makes the same row",
    "kind": "`short_caption`, `detailed_caption` or `qa`",
    "qa_type": "`basic`, `reasoning` or `future`; `none` for captions",
    "split": "`train` or `held_out`, by hash of the video's content",
    "clip_id": "the shot that the row was made from",
    "source_id": "the row of the source that the clip came from",
    "video": "path of the video relative to the source root",
    "video_sha256": "SHA-256 of the video file",
    "license": "as the source states it",
    "start_s": "start of the clip in the video, seconds",
    "end_s": "end of the clip, seconds, not included",
    "visible_until_s": "what a model may see ends here; before `end_s` for future questions",
    "fps": "displayed frames per second",
    "height": "of the displayed (rotated) frame, pixels",
    "width": "of the displayed (rotated) frame, pixels",
    "conversations": "turns; questions hold one `<region>` per object, in order",
    "objects": "per object: frames counted from 0 over the file, their times, COCO RLE counts (null: out of sight)",
    "provenance": "engines, weights, prompt hashes and revisions by agent, the verdict, who worded the answer",
}


def dataset_card(build_id: str, profile: Profile, labels: Sequence[AgentLabel], counts: BuildCounts) -> str:
    """Markdown with the hub's YAML header; `license`, `size_categories` and `configs` come from the counts."""
    # Markdown, not HTML: nothing in it is escaped but what would break a table
    environment = Environment(  # noqa: S701
        loader=PackageLoader("flows", "templates"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = _cell
    return environment.get_template("card.md.jinja").render(
        build_id=build_id,
        profile=profile,
        labels=labels,
        counts=counts,
        licenses=hub_licenses(counts),
        size=size_category(counts.num_samples),
        kinds=[kind for kind in typing.get_args(Kind) if any(key[0] == kind for key in counts.samples)],
        columns=columns(),
        schema_version=SCHEMA_VERSION,
        max_masked_frames=MAX_MASKED_FRAMES,
    )


def columns() -> list[tuple[str, str, str]]:
    """Name, Arrow type and meaning of every column of a shard."""
    return [(field.name, _type_name(field.type), _MEANINGS[field.name]) for field in arrow_schema(Sample)]


def hub_licenses(counts: BuildCounts) -> list[str]:
    """The sources' licences in the hub's names."""
    names = {stated.strip().lower() for stated in counts.clips_by_license}
    return sorted({name if name in HUB_LICENSES else "other" for name in names}) or ["other"]


def size_category(num_samples: int) -> str:
    """The hub's name for a number of rows."""
    return next((name for limit, name in _SIZES if num_samples < limit), "n>1M")


def _type_name(arrow_type: pa.DataType) -> str:
    if pa.types.is_list(arrow_type):
        return f"list<{_type_name(arrow_type.value_type)}>"
    if pa.types.is_struct(arrow_type):
        return f"struct<{', '.join(f'{field.name}: {_type_name(field.type)}' for field in arrow_type)}>"
    return str(arrow_type)


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")
