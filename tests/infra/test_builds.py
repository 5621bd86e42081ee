import hashlib
import json

import duckdb
import pyarrow.parquet as pq
import pytest

from infra import builds
from infra.builds import BuildCommand, BuildWriter, CommittedError, CountEntry, Manifest
from infra.lake import Lake, LakeError
from schemas.label import AgentLabel
from schemas.quarantine import QuarantineEntry
from schemas.sample import SCHEMA_VERSION, Provenance, Sample, SampleObject, Turn
from schemas.track import ObjectMasks, Track

LABEL = AgentLabel(agent="analyzer", engine="nouns", weights=("w@1",), config_json="{}", prompt_hash="", revision=1)
MANIFEST = Manifest(
    build_id="b1",
    schema_version=SCHEMA_VERSION,
    created_at="2025-01-01T00:00:00+00:00",
    source="clips",
    videos_root="clips",
    profile_name="embedded",
    profile_json="{}",
    labels=(LABEL,),
    counts=(CountEntry(group="samples", name="qa", n=3),),
)

OLD_MANIFEST = """{
  "build_id": "old", "schema_version": "1.0", "created_at": "2025-01-01T00:00:00+00:00",
  "source": "my clips", "videos_root": "videos", "profile_name": "painted", "profile_json": "{}",
  "labels": [{"agent": "analyzer", "engine": "nouns", "weights": ["w@1"], "config_json": "{}", "prompt_hash": "",
              "revision": 1}],
  "counts": [{"group": "samples", "name": "qa", "n": 3}],
  "shards": [{"content": "qa", "path": "builds/old/data/qa/shard-00000.parquet", "rows": 3, "sha256": "00",
              "bytes": 10}]
}"""


def sample(number: int, kind: str = "qa") -> Sample:
    return Sample(
        sample_id=f"s{number:05d}",
        kind=kind,
        qa_type="basic" if kind == "qa" else "none",
        split="train",
        clip_id="c",
        source_id="src",
        video="a.mp4",
        video_sha256="0" * 64,
        license="CC0",
        start_s=0.0,
        end_s=2.0,
        visible_until_s=1.5,
        fps=30.0,
        height=4,
        width=4,
        conversations=(
            Turn(speaker="human", value="<video>\nWhat does <region> do?"),
            Turn(speaker="gpt", value=f"It moves left. {number}"),
        ),
        objects=(
            SampleObject(
                object_id="o",
                noun="dog",
                frame_idx=(0, 5)[: 1 + (kind == "qa")],
                frame_time_s=(0.0,),
                rle=("0`0", None),
            ),
        ),
        provenance=Provenance(
            engines=("analyzer=nouns",),
            weights=(),
            prompt_hashes=(),
            revisions=("analyzer=1",),
            verdict="kept",
            wording="template",
        ),
    )


TRACK = Track(
    track_id="t",
    clip_id="c",
    mention_id="m",
    noun="dog",
    masks=ObjectMasks(
        detector_class="dog",
        frame_idx=(0, 5),
        frame_time_s=(0.0, 0.2),
        rle=("0`0", None),
        height_px=4,
        width_px=4,
        score=0.5,
    ),
)
DROPPED = QuarantineEntry(
    subject_id="x", source_id="src", clip_id="c", stage="reviewer", reason="class_mismatch", evidence="0.1 under 0.2"
)


@pytest.fixture
def lake(tmp_path):
    return Lake(tmp_path / "lake")


def write(lake: Lake, build_id: str = "b1", rows_per_shard: int = 2, num_qa: int = 5) -> BuildWriter:
    writer = BuildWriter(lake, build_id, rows_per_shard)
    writer.write_samples("short_caption", [])
    writer.write_samples("detailed_caption", [sample(0, "detailed_caption")])
    writer.write_samples("qa", (sample(n) for n in range(num_qa)))
    writer.write_tracks([TRACK])
    writer.write_quarantine([DROPPED])
    return writer


def shard_paths(tmp_path, kind: str) -> list[str]:
    return [str(path) for path in sorted((tmp_path / "lake/builds/b1/data" / kind).glob("*.parquet"))]


def test_a_build_reads_back_as_written(lake):
    write(lake).commit(MANIFEST)
    assert list(builds.read_samples(lake, "b1", "qa")) == [sample(n) for n in range(5)]
    assert list(builds.read_samples(lake, "b1", "detailed_caption")) == [sample(0, "detailed_caption")]
    assert list(builds.read_samples(lake, "b1", "short_caption")) == []
    assert list(builds.read_tracks(lake, "b1")) == [TRACK]
    assert list(builds.read_quarantine(lake, "b1")) == [DROPPED]


def test_the_manifest_lists_every_file_with_rows_and_hash(lake, tmp_path):
    manifest = write(lake).commit(MANIFEST)
    assert manifest == builds.read_manifest(lake, "b1")
    assert [entry.rows for entry in manifest.shards_of("qa")] == [2, 2, 1]
    assert [entry.rows for entry in manifest.shards_of("short_caption")] == [0]
    files = {str(path.relative_to(tmp_path / "lake")) for path in (tmp_path / "lake").rglob("*.parquet")}
    assert {entry.path for entry in manifest.shards} == files
    for entry in manifest.shards:
        data = (tmp_path / "lake" / entry.path).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (entry.sha256, entry.bytes)
    assert builds.verify_build(lake, "b1") == []


def test_what_is_not_committed_is_no_build(lake):
    assert (builds.latest_build(lake), builds.list_builds(lake)) == (None, ())
    write(lake)
    assert (builds.latest_build(lake), builds.list_builds(lake)) == (None, ())
    with pytest.raises(LakeError, match="has no build b1"):
        builds.read_manifest(lake, "b1")


def test_a_cut_off_build_is_written_over_and_its_strays_go(lake):
    write(lake, rows_per_shard=1, num_qa=9)
    manifest = write(lake, rows_per_shard=2, num_qa=5).commit(MANIFEST)
    assert lake.names("builds/b1/data/qa") == ["shard-00000.parquet", "shard-00001.parquet", "shard-00002.parquet"]
    assert len(manifest.shards_of("qa")) == 3
    assert len(list(builds.read_samples(lake, "b1", "qa"))) == 5


def test_the_same_samples_give_the_same_bytes(tmp_path):
    shards = [write(Lake(tmp_path / name)).commit(MANIFEST).shards for name in ("one", "two")]
    assert shards[0] == shards[1]


def test_a_committed_build_is_not_written_again(lake):
    write(lake).commit(MANIFEST)
    with pytest.raises(LakeError, match="already committed"):
        BuildWriter(lake, "b1")


def test_commit_needs_every_content_and_its_own_manifest(lake):
    writer = BuildWriter(lake, "b1")
    writer.write_samples("qa", [])
    with pytest.raises(ValueError, match="short_caption, detailed_caption, tracks, quarantine not written"):
        writer.commit(MANIFEST)
    with pytest.raises(ValueError, match="got the manifest of build b1, this is b2"):
        write(lake, "b2").commit(MANIFEST)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([sample(2), sample(1)], "sorted by clip_id and sample_id"),
        ([sample(1), sample(1)], "once each"),
        ([sample(1, "detailed_caption")], "is a detailed_caption, expected qa"),
    ],
)
def test_samples_out_of_order_twice_or_of_another_kind_are_refused(lake, samples, message):
    with pytest.raises(ValueError, match=message):
        BuildWriter(lake, "b1").write_samples("qa", samples)


def test_latest_is_the_last_committed_and_builds_are_listed_oldest_first(lake):
    for build_id, day in (("b2", 1), ("b1", 2)):
        manifest = MANIFEST.model_copy(update={"build_id": build_id, "created_at": f"2025-01-0{day}"})
        write(lake, build_id).commit(manifest)
    assert builds.latest_build(lake) == "b1"
    assert [manifest.build_id for manifest in builds.list_builds(lake)] == ["b2", "b1"]
    builds.set_latest(lake, "b2")
    assert json.loads(lake.get("latest.json")) == {"build": "b2"}


def test_a_garbled_latest_is_told(lake):
    lake.put("latest.json", b"[]")
    with pytest.raises(LakeError, match="must read"):
        builds.latest_build(lake)


def test_a_manifest_from_before_commands_and_work_were_kept_is_read(lake):
    lake.put("builds/old/manifest.json", OLD_MANIFEST.encode())
    manifest = builds.read_manifest(lake, "old")
    assert (manifest.command, manifest.work, manifest.labels) == (None, (), (LABEL,))
    line = "videorefer build --source 'my clips' --lake L --root videos --profile painted"
    assert manifest.asked.line("L") == line
    assert [entry.build_id for entry in builds.list_builds(lake)] == ["old"]


def test_what_was_asked_for_can_be_pasted_into_a_shell():
    asked = BuildCommand(source="a b.csv", profile="embedded")
    assert asked.line("s3://x/y") == "videorefer build --source 'a b.csv' --lake s3://x/y"
    asked = BuildCommand(source="a.csv", root="$HOME", profile="my.toml", limit=3)
    line = "videorefer build --source a.csv --lake L --root '$HOME' --profile my.toml --limit 3"
    assert asked.line("L") == line
    asked = BuildCommand(source="a.csv", profile="embedded", ray="ray://head:10001")
    assert asked.line("L") == "videorefer build --source a.csv --lake L --ray ray://head:10001"


def test_a_slower_writer_of_the_same_build_leaves_a_committed_one_alone(lake):
    slow = BuildWriter(lake, "b1")
    slow.write_tracks([])
    write(lake).commit(MANIFEST)
    other = QuarantineEntry(
        subject_id="s", source_id="s", clip_id="c", stage="analyzer", reason="agent_died", evidence="another"
    )
    with pytest.raises(CommittedError, match="b1 is already committed"):
        slow.write_quarantine([other])
    with pytest.raises(CommittedError):
        slow.write_page("README.md", "another")
    assert lake.get("builds/b1/README.md") is None
    assert builds.verify_build(lake, "b1") == []


def test_chosen_columns_come_alone_and_only_of_row_groups_with_a_chosen_clip(lake):
    write(lake).commit(MANIFEST)
    columns = ("sample_id", "objects.list.element.noun")
    rows = [row for table in builds.read_columns(lake, "b1", "qa", columns) for row in table.to_pylist()]
    assert rows == [{"sample_id": f"s{n:05d}", "objects": [{"noun": "dog"}]} for n in range(5)]
    assert [t.num_rows for t in builds.read_columns(lake, "b1", "qa", columns, frozenset({"c"}))] == [2, 2, 1]
    assert list(builds.read_columns(lake, "b1", "qa", columns, frozenset({"other"}))) == []


def test_verify_tells_missing_and_changed_files(lake, tmp_path):
    manifest = write(lake).commit(MANIFEST)
    first, second, _ = manifest.shards_of("qa")
    lake.remove(first.path)
    with (tmp_path / "lake" / second.path).open("ab") as file:
        file.write(b"x")
    (track,) = manifest.shards_of("tracks")
    wrong = manifest.model_copy(
        update={"shards": tuple(s.model_copy(update={"rows": 7}) if s == track else s for s in manifest.shards)}
    )
    lake.put("builds/b1/manifest.json", wrong.model_dump_json().encode())
    problems = builds.verify_build(lake, "b1")
    assert [problem.split()[0] for problem in problems] == [first.path, second.path, track.path]
    assert problems[0].endswith("is missing")
    assert "sha256" in problems[1]
    assert "has 1 rows, the manifest says 7" in problems[2]


def test_another_major_version_is_refused(lake, monkeypatch):
    write(lake).commit(MANIFEST)
    monkeypatch.setattr(builds, "SCHEMA_VERSION", "2.0")
    with pytest.raises(LakeError, match=r"schema version 1\.0, this program reads 2\.0"):
        builds.read_manifest(lake, "b1")


def test_columns_of_a_newer_minor_are_passed_over(lake, tmp_path):
    write(lake, rows_per_shard=9).commit(MANIFEST)
    (path,) = shard_paths(tmp_path, "qa")
    table = pq.read_table(path)
    pq.write_table(table.append_column("new_in_1_1", [[1] * 5]), path)
    assert len(list(builds.read_samples(lake, "b1", "qa"))) == 5


def test_shards_carry_version_small_row_groups_and_separate_mask_columns(lake, tmp_path):
    write(lake, rows_per_shard=600, num_qa=600).commit(MANIFEST)
    (path,) = shard_paths(tmp_path, "qa")
    shard = pq.ParquetFile(path)
    assert shard.schema_arrow.metadata == {b"schema_version": SCHEMA_VERSION.encode(), b"kind": b"qa"}
    assert [shard.metadata.row_group(n).num_rows for n in range(shard.num_row_groups)] == [256, 256, 88]
    group = shard.metadata.row_group(0)
    codecs = {group.column(n).path_in_schema: group.column(n).compression for n in range(group.num_columns)}
    assert codecs["objects.list.element.rle.list.element"] == "SNAPPY"
    assert codecs["conversations.list.element.value"] == "ZSTD"


def test_plain_pyarrow_and_duckdb_read_conversations_by_their_official_names(lake, tmp_path):
    write(lake).commit(MANIFEST)
    paths = shard_paths(tmp_path, "qa")
    row = pq.read_table(paths).to_pylist()[0]
    assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"]
    found = duckdb.sql(
        f"""select sample_id, conversations[2]."from", objects[1].rle[2] from read_parquet({paths}) order by 1"""
    )
    assert found.fetchall()[:2] == [("s00000", "gpt", None), ("s00001", "gpt", None)]


def test_the_datasets_library_reads_shards_with_empty_ones_among_them(lake, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    import datasets  # only after the environment says that there is no hub

    write(lake).commit(MANIFEST)
    # an empty file among others is fine; a split of empty files alone is beyond `datasets`
    files = [path for kind in builds.KINDS for path in shard_paths(tmp_path, kind)]
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert [Sample.model_validate(row) for row in loaded] == [
        sample(0, "detailed_caption"),
        *(sample(n) for n in range(5)),
    ]


def test_a_build_lives_in_an_object_store_too(tmp_path):
    remote = Lake(f"memory://{tmp_path.name}/lake")
    assert write(remote).commit(MANIFEST).shards == write(Lake(tmp_path)).commit(MANIFEST).shards
    assert list(builds.read_samples(remote, "b1", "qa")) == [sample(n) for n in range(5)]
    assert builds.verify_build(remote, "b1") == []
    assert builds.latest_build(remote) == "b1"
