import json
import os
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq
import pytest

from infra.lake import Lake, LakeError
from schemas.caption import CaptionSet
from schemas.label import AgentLabel
from schemas.mention import MentionSet
from schemas.quarantine import QuarantineEntry

LABEL = AgentLabel(agent="analyzer", engine="nouns", weights=("w@1",), config_json="{}", prompt_hash="", revision=1)


def entry(subject: str) -> QuarantineEntry:
    return QuarantineEntry(
        subject_id=subject, source_id="s", clip_id="c", stage="analyzer", reason="no_mention", evidence="none"
    )


def mentions(clip_id: str, num_rejected: int = 1) -> MentionSet:
    return MentionSet(
        clip_id=clip_id, mentions=(), rejected=tuple(entry(f"{clip_id}-{n}") for n in range(num_rejected))
    )


@pytest.fixture(params=["folder", "memory"])
def lake(request, tmp_path):
    if request.param == "folder":
        return Lake(tmp_path / "lake")
    return Lake(f"memory://{uuid.uuid4().hex}/lake")


def test_what_is_appended_is_read_back_by_key(lake):
    store = lake.agent_store(LABEL, MentionSet)
    store.append([("k1", mentions("a", 2)), ("k2", mentions("b", 0))])
    store.append([("k3", mentions("c"))])
    again = lake.agent_store(LABEL, MentionSet)
    assert store.keys() == again.keys() == {"k1", "k2", "k3"}
    assert again.read(["k1", "k3"]) == {"k1": mentions("a", 2), "k3": mentions("c")}
    assert again.read([]) == {}


def test_an_empty_lake_has_no_keys_and_reading_creates_nothing(lake):
    assert lake.agent_store(LABEL, MentionSet).keys() == frozenset()
    assert lake.names("agents") == []


def test_a_part_is_plain_parquet_with_key_and_clip_id_beside_its_label(tmp_path):
    store = Lake(tmp_path).agent_store(LABEL, MentionSet)
    store.append([("k1", mentions("a"))])
    folder = tmp_path / "agents" / "analyzer" / LABEL.config_hash
    (part,) = folder.glob("part-*.parquet")
    table = pq.read_table(part)
    assert table.column_names == ["key", "clip_id", "mentions", "rejected"]
    assert table["clip_id"].to_pylist() == ["a"]
    assert AgentLabel.model_validate(json.loads((folder / "label.json").read_text())) == LABEL
    assert sorted(path.name for path in folder.iterdir()) == ["label.json", part.name]


def test_another_label_is_another_folder(lake):
    other = LABEL.model_copy(update={"revision": 2})
    lake.agent_store(LABEL, MentionSet).append([("k1", mentions("a"))])
    assert lake.agent_store(other, MentionSet).keys() == frozenset()


def test_a_key_in_two_parts_is_read_once_from_the_first_by_name(lake):
    first, second = (lake.agent_store(LABEL, MentionSet) for _ in range(2))
    first.append([("k", mentions("a", 1))])
    second.append([("k", mentions("a", 2)), ("l", mentions("b"))])
    parts = [name for name in lake.names(first.folder) if name.endswith(".parquet")]
    with lake.fs.open(lake.path(first.folder, parts[0]), "rb") as file:
        rows = {row["key"]: len(row["rejected"]) for row in pq.read_table(file).to_pylist()}
    for store in (first, second, lake.agent_store(LABEL, MentionSet)):
        store.refresh()
        assert len(store.read(["k"])["k"].rejected) == rows["k"]
        assert store.keys() == {"k", "l"}


def test_the_same_rows_twice_are_one_part(lake):
    for _ in range(2):
        lake.agent_store(LABEL, MentionSet).append([("k", mentions("a"))])
    assert sum(name.endswith(".parquet") for name in lake.names(lake.agent_store(LABEL, MentionSet).folder)) == 1


def test_parts_of_others_are_seen_after_refresh(lake):
    mine, theirs = (lake.agent_store(LABEL, MentionSet) for _ in range(2))
    assert mine.keys() == frozenset()
    theirs.append([("k", mentions("a"))])
    assert mine.keys() == frozenset()
    mine.refresh()
    assert mine.keys() == {"k"}


def test_a_missing_key_is_an_error(lake):
    with pytest.raises(LakeError, match="holds no output for 1 of the keys"):
        lake.agent_store(LABEL, MentionSet).read(["nowhere"])


@pytest.mark.parametrize("keep_bytes", [0, 3, 50, -1])
def test_a_torn_part_is_named(lake, keep_bytes):
    store = lake.agent_store(LABEL, MentionSet)
    store.append([("k", mentions("a"))])
    (name,) = (name for name in lake.names(store.folder) if name.endswith(".parquet"))
    lake.put(f"{store.folder}/{name}", lake.get(f"{store.folder}/{name}")[:keep_bytes])
    with pytest.raises(LakeError, match=f"{name} is not a readable part"):
        lake.agent_store(LABEL, MentionSet).keys()


def test_failures_rest_apart_from_outputs_under_the_same_label(lake):
    lake.agent_store(LABEL, MentionSet).append([("k1", mentions("a"))])
    failures = lake.failure_store(LABEL)
    assert failures.keys() == frozenset()
    failures.append([("k2", entry("b"))])
    assert failures.folder == f"failures/analyzer/{LABEL.config_hash}"
    assert lake.failure_store(LABEL).read(["k2"]) == {"k2": entry("b")}
    assert lake.agent_store(LABEL, MentionSet).keys() == {"k1"}


def test_what_is_removed_is_gone_from_every_part_and_the_rest_stays(lake):
    first, second = lake.failure_store(LABEL), lake.failure_store(LABEL)
    first.append([("k1", entry("a")), ("k2", entry("b"))])
    second.append([("k1", entry("other")), ("k3", entry("c"))])
    first.append([("k4", entry("d"))])
    first.remove(["k1", "k4", "nowhere"])
    for store in (first, lake.failure_store(LABEL)):
        assert store.keys() == {"k2", "k3"}
        assert store.read(["k2", "k3"]) == {"k2": entry("b"), "k3": entry("c")}
    assert sum(name.endswith(".parquet") for name in lake.names(first.folder)) == 2
    first.append([("k1", entry("again"))])
    assert lake.failure_store(LABEL).read(["k1"]) == {"k1": entry("again")}


def test_a_store_opened_before_a_removal_forgets_what_was_removed(lake):
    first, second = lake.failure_store(LABEL), lake.failure_store(LABEL)
    first.append([("k1", entry("a")), ("k2", entry("b"))])
    first.append([("k1", entry("other")), ("k3", entry("c"))])
    assert second.keys() == {"k1", "k2", "k3"}
    first.remove(["k2"])
    assert second.find(["k1", "k2"]).keys() == {"k1"}
    first.remove(["k1"])
    second.refresh()
    assert second.keys() == {"k3"}
    assert second.find(["k1", "k3", "nowhere"]) == {"k3": entry("c")}
    first.remove(["k3"])
    with pytest.raises(LakeError, match="holds no output for 1 of the keys"):
        second.read(["k3"])


def test_a_removal_between_listing_and_reading_is_no_torn_part(lake, monkeypatch):
    first, second = lake.failure_store(LABEL), lake.failure_store(LABEL)
    first.append([("k1", entry("a")), ("k2", entry("b"))])
    first.append([("k3", entry("c"))])
    list_names, doomed = Lake.names, ["k1", "k3"]

    def names_then_removal(self, folder):
        found = list_names(self, folder)
        if self is other and doomed:
            first.remove([doomed.pop()])
        return found

    other = Lake(lake.address)
    monkeypatch.setattr(Lake, "names", names_then_removal)
    assert other.failure_store(LABEL).keys() == {"k2"}
    assert doomed == []
    assert second.find(["k1", "k2", "k3"]) == {"k2": entry("b")}


def test_removals_at_once_all_take_effect_and_lose_nothing(tmp_path, monkeypatch):
    kept, put = {"k0": entry("stays")}, Lake.put
    Lake(tmp_path).failure_store(LABEL).append([*kept.items(), *((f"k{n}", entry(str(n))) for n in (1, 2, 3, 4))])

    def slow_put(self, name, data):
        put(self, name, data)
        time.sleep(0.02)

    monkeypatch.setattr(Lake, "put", slow_put)
    with ThreadPoolExecutor(5) as threads:
        list(threads.map(lambda key: Lake(tmp_path).failure_store(LABEL).remove([key]), ("k1", "k2", "k3", "k3", "k4")))
    store = Lake(tmp_path).failure_store(LABEL)
    assert store.read(store.keys()) == kept


def test_a_removal_that_was_cut_off_loses_nothing_and_can_be_done_again(lake, monkeypatch):
    store = lake.failure_store(LABEL)
    store.append([("k1", entry("a")), ("k2", entry("b"))])
    with monkeypatch.context() as broken:
        broken.setattr(Lake, "remove", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            store.remove(["k1"])
    assert lake.failure_store(LABEL).keys() == {"k1", "k2"}
    lake.failure_store(LABEL).remove(["k1"])
    assert lake.failure_store(LABEL).read(["k2"]) == {"k2": entry("b")}


def test_a_file_in_the_lake_is_named_as_others_find_it(tmp_path):
    assert Lake(tmp_path / "a b").uri("x.html") == (tmp_path / "a b" / "x.html").as_uri()
    assert Lake("memory://bucket/lake").uri("builds", "x.html") == "memory:///bucket/lake/builds/x.html"


def test_leftovers_of_a_killed_writer_are_ignored(tmp_path):
    store = Lake(tmp_path).agent_store(LABEL, MentionSet)
    store.append([("k", mentions("a"))])
    (tmp_path / store.folder / "part-00-1234.parquet.tmp").write_bytes(b"half")
    assert Lake(tmp_path).agent_store(LABEL, MentionSet).keys() == {"k"}


def test_a_failed_rename_leaves_nothing_behind(tmp_path):
    lake = Lake(tmp_path)
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    with pytest.raises(LakeError, match="cannot write"):
        lake.put("taken", b"data")
    assert list(tmp_path.rglob("*.tmp")) == []


def test_rows_of_another_record_are_refused(lake):
    lake.agent_store(LABEL, MentionSet).append([("k", mentions("a"))])
    with pytest.raises(LakeError, match="is no CaptionSet"):
        lake.agent_store(LABEL, CaptionSet).read(["k"])


def test_a_label_changed_by_hand_is_refused(lake):
    store = lake.agent_store(LABEL, MentionSet)
    lake.put(f"{store.folder}/label.json", b"{}")
    with pytest.raises(LakeError, match="changed by hand"):
        store.append([("k", mentions("a"))])


def test_many_threads_lose_nothing(lake):
    store = lake.agent_store(LABEL, MentionSet)

    def work(worker: int) -> None:
        for n in range(8):
            store.append([(f"{worker}-{n}", mentions(f"{worker}-{n}"))])
            store.read([f"{worker}-{n}"])

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = {f"{worker}-{n}" for worker in range(4) for n in range(8)}
    assert store.keys() == lake.agent_store(LABEL, MentionSet).keys() == wanted
    assert {record.clip_id for record in store.read(wanted).values()} == wanted


def test_writable_lakes_pass_the_check_and_stay_empty(lake):
    lake.check_writable()
    assert lake.names("") == []


def test_an_unwritable_lake_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LakeError, match="cannot write to the lake") as info:
        Lake(tmp_path / "file").check_writable()
    assert "\n" not in str(info.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_unwritable(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(LakeError, match="cannot write to the lake"):
        Lake(tmp_path).check_writable()
