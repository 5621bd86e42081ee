import pickle
from pathlib import Path
from typing import Any

import pytest

from infra.lake import LakeError
from model.data import sources
from model.data.item import RunLengths
from model.data.sources import FileSource, ShardSource, sample_item


def test_items_of_shards_are_those_of_the_samples_of_the_split(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.builds.ROWS_PER_GROUP", 4)
    split = {number: "held_out" if number % 3 == 0 else "train" for number in range(30)}
    kinds = {number: ("short_caption", "detailed_caption", "qa")[number // 10] for number in range(30)}
    samples = [
        rows.sample(
            number,
            ((3,),),
            split=split[number],
            kind=kinds[number],
            qa_type="basic" if kinds[number] == "qa" else "none",
        )
        for number in range(30)
    ]
    lake = rows.build(samples, rows_per_shard=9)
    source = ShardSource(lake, "b1")
    wanted = [sample for number, sample in enumerate(samples) if split[number] == "train"]
    assert sum(source.groups) == len(source) == len(wanted) == 20
    assert [source.item(at) for at in (7, 0, 19)] == [sample_item(wanted[at], "build b1") for at in (7, 0, 19)]
    assert [source.item(at).item_id for at in range(20)] == [sample.sample_id for sample in wanted]
    assert len(ShardSource(lake, "b1", kinds=["qa"], split="held_out")) == sum(
        split[number] == "held_out" for number in range(20, 30)
    )


def test_a_sample_keeps_its_masks_and_its_visible_end(rows: Any) -> None:
    item = sample_item(rows.sample(1, ((3, 30),), visible_until_s=1.5), "b")
    assert item.media is not None
    assert item.media.span_s == (0.0, 1.5)
    assert item.media.sha256 == "0" * 64
    assert item.objects[0].masks[1] == RunLengths(rows.rle(30)["counts"], 64, 96)


def test_a_row_group_is_decoded_once_while_it_is_kept(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ShardSource(rows.build([rows.sample(number) for number in range(6)]), "b1")
    source.item(0)
    monkeypatch.setattr(sources.pq, "ParquetFile", lambda *_: pytest.fail("read again"))
    assert [source.item(at).item_id for at in range(6)] == [f"s{at:05d}" for at in range(6)]


def test_a_source_goes_to_a_worker_without_what_it_has_read(rows: Any, tmp_path: Path) -> None:
    shards = ShardSource(rows.build([rows.sample(number) for number in range(300)]), "b1")
    size_before = len(pickle.dumps(shards))
    shards.item(3)
    assert len(pickle.dumps(shards)) == size_before
    file = FileSource(rows.file([rows.official(number) for number in range(3)]), tmp_path)
    for source in (shards, file):
        source.item(2)
        assert pickle.loads(pickle.dumps(source)).item(2) == source.item(2)


def test_a_build_in_an_object_store_is_read_like_a_folder(rows: Any) -> None:
    from infra.lake import Lake

    local = rows.build([rows.sample(number) for number in range(3)])
    remote = Lake("memory://lake-of-sources")
    for path in Path(local.root).rglob("*"):
        if path.is_file():
            remote.put(path.relative_to(local.root).as_posix(), path.read_bytes())
    assert ShardSource(remote, "b1").item(2) == ShardSource(local, "b1").item(2)


def test_a_torn_shard_stops_the_run(rows: Any) -> None:
    lake = rows.build([rows.sample(number) for number in range(3)])
    source = ShardSource(lake, "b1")
    (shard,) = Path(lake.root).rglob("detailed_caption/*.parquet")
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(LakeError, match="cannot read"):
        source.item(0)


def test_a_build_without_a_sample_to_train_on_is_refused(rows: Any) -> None:
    lake = rows.build([rows.sample(0, split="held_out")])
    with pytest.raises(ValueError, match="no sample of split train"):
        ShardSource(lake, "b1")


def test_groups_of_a_file_are_runs_of_its_rows(rows: Any, tmp_path: Path) -> None:
    assert FileSource(rows.file([{}] * 600), tmp_path).groups == (256, 256, 88)
    assert FileSource(rows.file([{}] * 600, "rows.jsonl"), tmp_path).groups == (256, 256, 88)
    with pytest.raises(ValueError, match="holds no row"):
        _ = FileSource(rows.file([], "empty.json"), tmp_path).groups
