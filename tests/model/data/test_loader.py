import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.data.loader import DataFeed, LoaderConfig
from model.data.scene import SceneConfig
from model.data.sources import FileSource, ShardSource
from model.training.feed import Loader, MicroBatch

SCENE = SceneConfig(num_frames=4, side_px=56)

pytestmark = pytest.mark.usefixtures("video")

MakeFeed = Callable[..., DataFeed]


@pytest.fixture
def encoder(tiny_config: Callable[..., Any], tiny_processor: Callable[..., Any]) -> Any:
    return tiny_processor(tiny_config())


@pytest.fixture
def feed(rows: Any, tmp_path: Path, encoder: Any) -> MakeFeed:
    """Forty samples of a build and twelve official rows, taken twice."""
    lake = rows.build([rows.sample(number, ((3, 30), (7,))) for number in range(40)])
    path = rows.file([rows.official(100 + number, ((5, 9),)) for number in range(12)])

    def make(**changes: Any) -> DataFeed:
        sources = [(ShardSource(lake, "b1"), 1.0), (FileSource(path, tmp_path), 2.0)]
        return DataFeed(
            sources, encoder, SCENE, LoaderConfig(**({"global_batch": 8, "micro_batch": 2, "seed": 5} | changes))
        )

    return make


def taken(feed: DataFeed, step: int, count: int) -> list[MicroBatch]:
    return list(itertools.islice(feed.micro_batches(step), count))


def rows_of(batches: list[MicroBatch]) -> list[bytes]:
    """Each sample's own text, without padding."""
    found = []
    for batch in batches:
        assert batch.inputs is not None
        for ids, mask in zip(batch.inputs["input_ids"], batch.inputs["attention_mask"], strict=True):
            found.append(ids[mask.bool()].numpy().tobytes())
    return found


def same(one: MicroBatch, other: MicroBatch) -> bool:
    assert one.inputs is not None
    assert other.inputs is not None
    return one.inputs.keys() == other.inputs.keys() and all(
        torch.equal(one.inputs[name], other.inputs[name]) for name in one.inputs
    )


def test_a_feed_is_what_the_training_loop_wants(feed: MakeFeed) -> None:
    made: Loader = feed()
    assert made.num_samples == 40 + 24
    first = next(made.micro_batches(0))
    assert (first.num_samples, first.num_bad) == (2, 0)
    assert first.inputs is not None
    assert {"input_ids", "labels", "pixel_values", "mask_weights"} <= set(first.inputs)
    assert (first.inputs["labels"] != -100).any()


def test_an_epoch_gives_every_sample_as_often_as_its_source_is_weighted(feed: MakeFeed) -> None:
    texts = rows_of(taken(feed(), 0, 64 // 2))
    assert len(texts) == 64
    assert len(set(texts)) >= 52


def test_resuming_in_the_middle_gives_what_would_have_come(feed: MakeFeed) -> None:
    through = taken(feed(), 0, 6 * 4)
    resumed = taken(feed(), 4, 2 * 4)
    assert all(same(a, b) for a, b in zip(through[16:], resumed, strict=True))


def test_a_step_has_the_same_samples_whatever_the_number_of_ranks(feed: MakeFeed) -> None:
    alone = rows_of(taken(feed(), 3, 4))
    pair = [rows_of(taken(feed(rank=rank, world_size=2), 3, 2)) for rank in (0, 1)]
    assert pair[0] + pair[1] == alone


def test_a_feed_leaves_the_callers_chance_alone(feed: MakeFeed) -> None:
    before = torch.get_rng_state()
    taken(feed(), 0, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_give_what_the_caller_would(feed: MakeFeed) -> None:
    here = taken(feed(), 1, 4)
    there = taken(feed(num_workers=2), 1, 4)
    assert all(same(a, b) for a, b in zip(here, there, strict=True))


def test_a_bad_sample_is_named_and_left_out_and_not_replaced(rows: Any, tmp_path: Path, encoder: Any) -> None:
    two_tags = [{"from": "human", "value": "<video> <video> <region>?"}, {"from": "gpt", "value": "x"}]
    bad = {
        1: (rows.official(1, video="absent.mp4"), "missing_file"),
        2: (rows.official(2, video="../a.mp4"), "outside_root"),
        3: (5, "bad_row"),
        4: (rows.official(4, annotation=...), "regions"),
        5: (rows.official(5, annotation=[{"3": {}}]), "not_visible"),
        6: (rows.official(6, ((99,),)), "frame_outside"),
        7: (
            rows.official(
                7,
                annotation=...,
                video=...,
                image="a.jpg",
                conversations=[
                    {"from": "human", "value": "<image> and <image>?"},
                    {"from": "gpt", "value": "x"},
                ],
            ),
            "missing_file",
        ),
        8: (rows.official(8, conversations=two_tags), "scene_tag"),
        9: (rows.official(9, conversations=[{"from": "gpt", "value": "<region>"}]), "turns"),
        10: (rows.official(10, annotation=[{"3": {"segmentation": {"size": [64, 96], "counts": "0`0"}}}]), "bad_mask"),
    }  # fmt: skip
    path = rows.file([bad[number][0] if number in bad else rows.official(number) for number in range(12)])
    config = LoaderConfig(global_batch=12, micro_batch=12, seed=0)
    made = DataFeed([(FileSource(path, tmp_path), 1.0)], encoder, SCENE, config)
    batch = next(made.micro_batches(0))
    assert (batch.num_samples, batch.num_bad) == (2, 10)
    assert batch.inputs is not None
    assert len(batch.inputs["input_ids"]) == 2
    assert {one.item_id: one.reason for one in made.bad} == {
        "row 3" if number == 3 else str(number): reason for number, (_, reason) in bad.items()
    }
    assert {one.source for one in made.bad} == {"rows.json"}
    assert batch.bad == made.bad


def test_a_batch_without_a_good_sample_has_no_tensors(rows: Any, tmp_path: Path, encoder: Any) -> None:
    path = rows.file([rows.official(number, video="absent.mp4") for number in range(4)])
    config = LoaderConfig(global_batch=4, micro_batch=4, seed=0)
    made = DataFeed([(FileSource(path, tmp_path), 1.0)], encoder, SCENE, config)
    batch = next(made.micro_batches(0))
    assert (batch.inputs, batch.num_samples, batch.num_bad) == (None, 0, 4)
    assert [one.reason for one in batch.bad] == ["missing_file"] * 4


def test_micro_batches_that_do_not_divide_a_ranks_share_are_refused(feed: MakeFeed) -> None:
    with pytest.raises(ValueError, match="micro-batches of 3 must divide a rank's 8 samples"):
        feed(micro_batch=3)
