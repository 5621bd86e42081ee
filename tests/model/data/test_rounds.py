import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.data.item import BadItemError, TrainItem
from model.data.rounds import conversations, joined
from model.data.scene import SceneConfig, request_of
from model.data.sources import ShardSource, sample_item

ALL = SceneConfig(num_frames=4, side_px=1000, single_frame_share=0.0)


def rounds_of(item: TrainItem) -> list[tuple[str, str]]:
    contents = [message.content for message in item.messages]
    return list(zip(contents[::2], contents[1::2], strict=True))


def test_rows_of_a_clip_are_joined_up_to_the_limit_and_none_is_lost() -> None:
    clips = list("aabacbbaab")
    taken = conversations(clips, 3)
    assert taken == [[0, 1, 3], [7, 8], [2, 5, 6], [9], [4]]
    assert conversations(clips, 1) == [[0], [1], [3], [7], [8], [2], [5], [6], [9], [4]]
    assert conversations([], 3) == []


def test_each_sample_of_the_split_stands_in_one_conversation_about_its_clip(
    rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.builds.ROWS_PER_GROUP", 7)
    samples = [
        rows.sample(
            number,
            clip_id=f"c{number // 5}",
            split="held_out" if number % 5 == 0 else "train",
            kind=("detailed_caption", "qa")[number // 12],
            qa_type=("none", "basic")[number // 12],
        )
        for number in range(24)
    ]
    lake = rows.build(samples, rows_per_shard=9)
    source = ShardSource(lake, "b1", max_rounds=2)
    items = [source.item(at) for at in range(len(source))]
    assert sum(source.groups) == len(source)
    assert max(len(rounds_of(item)) for item in items) == 2
    by_answer = {sample.conversations[1].value: sample for sample in samples}
    told = [[by_answer[answer] for _, answer in rounds_of(item)] for item in items]
    assert sorted(sample.sample_id for one in told for sample in one) == [
        sample.sample_id for sample in samples if sample.split == "train"
    ]
    assert all(len({(sample.clip_id, sample.kind) for sample in one}) == 1 for one in told)
    assert [item.item_id for item in items] == [
        one[0].sample_id + (" and 1 more of its clip" if len(one) == 2 else "") for one in told
    ]
    assert pickle.loads(pickle.dumps(source)).item(3) == items[3]


def test_a_question_on_the_future_is_not_joined_with_those_that_see_it(rows: Any) -> None:
    ends_s = (1.6, 1.0, 1.6, 1.0)
    samples = [rows.sample(number, clip_id="c", visible_until_s=end_s) for number, end_s in enumerate(ends_s)]
    source = ShardSource(rows.build(samples), "b1", max_rounds=4)
    items = [source.item(at) for at in range(len(source))]
    assert [item.item_id for item in items] == ["s00000 and 1 more of its clip", "s00001 and 1 more of its clip"]
    assert [item.media.span_s[1] for item in items if item.media is not None and item.media.span_s] == [1.6, 1.0]


def test_later_rounds_lose_the_scene_tag_and_count_their_objects_on(rows: Any) -> None:
    one = sample_item(rows.sample(1, ((3,),)), "b")
    two = sample_item(
        rows.sample(
            2,
            ((5,), (9,)),
            conversations=[
                {"from": "human", "value": "<video>\nThere are <object0><region>, <object1><region>.\nWhich is red?"},
                {"from": "gpt", "value": "<object1> is red, <object0> is not."},
            ],
        ),
        "b",
    )
    assert rounds_of(joined([one, two, two])) == [
        ("<video>\nWhat is <region>?", "Thing 1."),
        ("There are <object1><region>, <object2><region>.\nWhich is red?", "<object2> is red, <object1> is not."),
        ("There are <object3><region>, <object4><region>.\nWhich is red?", "<object4> is red, <object3> is not."),
    ]
    assert joined([one, two]).objects == (*one.objects, *two.objects)
    assert joined([two]) == two


@pytest.mark.usefixtures("video")
def test_an_object_is_shown_alike_in_all_rounds_as_it_would_be_alone(rows: Any, tmp_path: Path) -> None:
    one, other = (sample_item(rows.sample(number, (frames,)), "b") for number, frames in enumerate([(3, 30), (9, 17)]))
    whole = request_of(joined([one, other, one]), tmp_path, ALL, 0, 0)
    assert whole.scene is not None
    assert [len(region.frames) for region in whole.objects] == [2, 2, 2]
    for region, item in zip(whole.objects, (one, other, one), strict=True):
        alone = request_of(item, tmp_path, ALL, 0, 0)
        assert alone.scene is not None
        for at, mask, there, same in zip(
            region.frames, region.masks, alone.objects[0].frames, alone.objects[0].masks, strict=True
        ):
            assert np.array_equal(whole.scene.frames[at], alone.scene.frames[there])
            assert mask is not None
            assert same is not None
            assert np.array_equal(mask, same)
    for epoch in range(6):
        first, _, third = request_of(
            joined([one, other, one]), tmp_path, ALL._replace(single_frame_share=1.0), 0, epoch
        ).objects
        assert len(first.frames) == 1
        assert first.frames == third.frames


def test_a_bad_row_is_named_and_takes_its_conversation_with_it(rows: Any) -> None:
    samples = [rows.sample(number, clip_id="c") for number in range(3)]
    samples[1] = samples[1].model_copy(update={"objects": ()})
    source = ShardSource(rows.build(samples), "b1", max_rounds=3)
    with pytest.raises(BadItemError, match="s00001") as caught:
        source.item(0)
    assert caught.value.reason == "bad_row"
