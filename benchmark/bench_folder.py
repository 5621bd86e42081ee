"""Writing a new bench: `bench-d.json`, `bench-q.json` and the page that says what they are."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from benchmark.building import LETTERS, BenchBuildError, NewBench, Row
from benchmark.question_types import OFFICIAL_TYPES
from benchmark.report import cell
from infra.lake import Lake

DESCRIPTIONS_FILE = "bench-d.json"
QUESTIONS_FILE = "bench-q.json"
README_FILE = "README.md"


def write_bench(bench: NewBench, folder: Lake) -> None:
    """Write the three files, each whole or not at all; the same bench gives the same bytes.

    Raises BenchBuildError where a file of that name holds items checked by hand, or is no bench file; nothing is
    written then. Raises LakeError where the folder cannot be written.
    """
    pages = {
        DESCRIPTIONS_FILE: _json_lines(bench.descriptions),
        QUESTIONS_FILE: _json_lines(bench.questions),
        README_FILE: bench_readme(bench),
    }
    for name in (DESCRIPTIONS_FILE, QUESTIONS_FILE):
        _check_replaceable(folder, name)
    for name, text in pages.items():
        folder.put(name, text.encode())


def bench_readme(bench: NewBench) -> str:
    """The page in Markdown: where the items are from, how many of each type, how to score and check them."""
    rows = [*bench.descriptions, *bench.questions]
    environment = Environment(  # noqa: S701 - Markdown, not HTML
        loader=PackageLoader("benchmark", "templates"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = cell
    text = environment.get_template("bench.md.jinja").render(
        build_id=bench.manifest.build_id,
        profile_name=bench.manifest.profile_name,
        labels=bench.manifest.labels,
        plan=bench.plan,
        num_clips=len({row["clip_id"] for row in rows}),
        num_videos=len({row["video_sha256"] for row in rows}),
        num_descriptions=len(bench.descriptions),
        num_questions=len(bench.questions),
        types=[_type_counts(name, bench.questions) for name in OFFICIAL_TYPES],
        letters=_letters(bench.questions),
        left_out=bench.left_out,
        num_apart=sum(_is_apart(row) for row in rows),
        num_future=sum(row["visible_until_s"] < row["end_s"] for row in bench.questions),
        num_late=sum(row["start_s"] > 0 for row in rows),
    )
    return text.rstrip("\n") + "\n"


def _type_counts(name: str, questions: Sequence[Row]) -> dict[str, Any]:
    rows = [row for row in questions if row["type"] == name]
    return {"name": name, "n": len(rows), "letters": _letters(rows)}


def _letters(questions: Sequence[Row]) -> list[int]:
    """How often each letter is right."""
    right = Counter(row["Answer"][1] for row in questions)
    return [right[letter] for letter in LETTERS]


def _is_apart(row: Row) -> bool:
    """Whether an object has no mask in the frame of single-frame mode."""
    return any(masks[row["frame_idx"]]["segmentation"] is None for masks in row["annotation"])


def _json_lines(rows: Sequence[Row]) -> str:
    """A JSON array with a row a line, so that a change by hand is a change of one line."""
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    return f"[\n{lines}\n]\n" if rows else "[]\n"


def _check_replaceable(folder: Lake, name: str) -> None:
    data = folder.get(name)
    if data is None:
        return
    try:
        rows = json.loads(data)
        checked = sum(bool(row.get("checked")) for row in rows)
    except (ValueError, TypeError, AttributeError) as error:
        raise BenchBuildError(f"{folder.path(name)} is there and no bench file; choose another folder") from error
    if checked:
        raise BenchBuildError(
            f"{folder.path(name)} holds {checked} items checked by hand, which would be lost; choose another folder"
        )
