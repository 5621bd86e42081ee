import json
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPImageProcessorPil, PreTrainedTokenizerFast, SiglipImageProcessorPil

from model.mask_grid import coverage_weights, official_weights
from model.processing import Encoded, VideoReferProcessor, processor_for
from model.request import REGION, Message, ObjectRegion, RequestError

SIDE_PX = 28
GRID = (2, 2)
IGNORED = -100
U = 2


@pytest.fixture
def processor(tiny_config, tiny_processor):
    return tiny_processor(tiny_config())


@pytest.fixture
def exact_processor(tiny_config, tiny_processor):
    return tiny_processor(tiny_config(paper_exact=True))


def fault(processor, request, with_labels=True, max_length=None):
    with pytest.raises(RequestError) as raised:
        processor.encode(request, with_labels, max_length)
    return raised.value.reason, str(raised.value)


def ids_of(processor, text):
    return processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def expected_pixels(frames):
    """Each frame resized by PIL to a square, then from 0..255 to -1..1."""
    resized = [Image.fromarray(frame).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC) for frame in frames]
    return torch.stack([torch.tensor(np.array(one)).permute(2, 0, 1) / 127.5 - 1 for one in resized])


def masks_of(region, frames):
    return torch.from_numpy(np.stack([region.masks[region.frames.index(frame)] for frame in frames]))


def test_ids_and_labels_of_a_request_with_two_objects(processor, make_request):
    # 4 frames in pairs, one token each; the first object has fewer masks than u = 2 tokens, the second more
    request = make_request([[1], [0, 2, 3]], question="<video>\nIs [<region>] by [<region>]?", answer="Yes.")
    encoded = processor.encode(request, with_labels=True)
    question = (
        ids_of(processor, "<|im_start|>user\n")
        + [processor.placeholder_id("<video>")] * 2
        + ids_of(processor, "\nIs [")
        + [processor.placeholder_id("<region>")]
        + ids_of(processor, "] by [")
        + [processor.placeholder_id("<region>")] * U
        + ids_of(processor, "]?<|im_end|>\n<|im_start|>assistant\n")
    )
    answer = ids_of(processor, "Yes.<|im_end|>")
    assert encoded.input_ids.tolist() == question + answer
    assert encoded.labels.tolist() == [IGNORED] * len(question) + answer
    assert encoded.num_cut == 0


def test_the_ids_of_a_question_do_not_depend_on_its_answer(processor, make_request):
    asked = processor.encode(make_request(answer=None), with_labels=False)
    answered = processor.encode(make_request(answer="A cat."), with_labels=True)
    assert answered.input_ids.tolist() == asked.input_ids.tolist() + ids_of(processor, "A cat.<|im_end|>")
    assert set(asked.labels.tolist()) == {IGNORED}


def test_every_answer_of_several_turns_is_learnt_up_to_its_end_token(processor, make_request):
    request = make_request([])
    turns = ("One?", "First.", "Two?", "Second.")
    messages = [Message(("user", "assistant")[place % 2], text) for place, text in enumerate(turns)]
    encoded = processor.encode(request._replace(messages=tuple(messages)), with_labels=True)
    learnt = encoded.labels[encoded.labels != IGNORED]
    assert processor.decode(learnt) == "First.<|im_end|>Second.<|im_end|>"
    assert torch.equal(encoded.input_ids[encoded.labels != IGNORED], learnt)


@pytest.mark.parametrize(("shown", "tokens"), [((0,), 1), ((0, 2), 1), ((0, 1, 2), 2), ((0, 1, 2, 3), 2)])
def test_the_scene_tag_stands_once_per_scene_token(processor, make_request, shown, tokens):
    encoded = processor.encode(make_request([], shown=shown, answer=None), with_labels=False)
    assert (encoded.input_ids == processor.placeholder_id("<video>")).sum() == tokens
    assert encoded.scene_num_frames.tolist() == [len(shown)]


def test_an_image_stands_for_one_frame_and_its_masks_have_no_time(processor, make_request):
    request = make_request(num_frames=1, is_image=True)
    scene = request.scene._replace(times_s=(1.0,), end_s=2.0)
    encoded = processor.encode(request._replace(scene=scene), with_labels=True)
    assert (encoded.input_ids == processor.placeholder_id("<image>")).sum() == 1
    assert not (encoded.input_ids == processor.placeholder_id("<video>")).any()
    assert encoded.mask_times.tolist() == [0]


def test_frames_that_nothing_uses_are_not_encoded(processor, make_request):
    request = make_request([[5], [2, -4, 1]], num_frames=7, shown=(0, 2, 6))
    encoded = processor.encode(request, with_labels=True)
    assert request.scene is not None
    torch.testing.assert_close(encoded.pixel_values, expected_pixels(request.scene.frames[[0, 1, 2, 5, 6]]))
    assert encoded.pixel_values.dtype == torch.float32
    assert encoded.scene_frame_index.tolist() == [0, 2, 4]
    assert encoded.mask_frame_index.tolist() == [3, 1, 2]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"resample": 0, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
        {"resample": 2, "image_mean": 0.4, "image_std": 0.3},
        {"resample": 1, "do_rescale": False, "image_mean": [120.0, 110.0, 100.0], "image_std": [50.0, 60.0, 70.0]},
        {"resample": 3, "do_normalize": False},
        {"do_normalize": False, "do_rescale": False},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0]},
    ],
)
@pytest.mark.parametrize("size_px", [(36, 48), (28, 28), (16, 20), (90, 28)])
def test_pixels_are_what_the_image_processor_makes_of_them(
    tiny_config, tiny_tokenizer, make_request, settings, size_px
):
    own = SiglipImageProcessorPil(size={"height": SIDE_PX, "width": SIDE_PX}, **settings)
    processor = processor_for(tiny_config(), tiny_tokenizer, own, None)
    request = make_request([[0]], size_px=size_px)
    expected = own(list(request.scene.frames), input_data_format="channels_last", return_tensors="pt").pixel_values
    got = processor.encode(request, with_labels=True).pixel_values
    torch.testing.assert_close(got, expected.to(torch.float32), rtol=1e-6, atol=1e-6)


class Brightened(SiglipImageProcessorPil):
    """Has a step of its own, as processors of some models do."""

    def normalize(self, image, mean, std, **kwargs):
        return super().normalize(image, mean, std, **kwargs) + 1


class Mirrored(SiglipImageProcessorPil):
    """Changes frames before they are resized."""

    def process_image(self, image, **kwargs):
        return super().process_image(image, **kwargs)[..., ::-1]


class Inverted(SiglipImageProcessorPil):
    """Resizes in its own way."""

    def resize(self, image, size, resample=None, **kwargs):
        return 255 - super().resize(image, size, resample, **kwargs)


@pytest.mark.parametrize("kind", [Brightened, Mirrored, Inverted])
def test_steps_of_an_image_processor_s_own_are_kept(tiny_config, tiny_tokenizer, make_request, kind):
    own = kind(size={"height": SIDE_PX, "width": SIDE_PX})
    plain = SiglipImageProcessorPil(size={"height": SIDE_PX, "width": SIDE_PX})
    request = make_request([[0]])
    frames = list(request.scene.frames)
    got = processor_for(tiny_config(), tiny_tokenizer, own, None).encode(request, with_labels=True).pixel_values
    expected, unlike = (
        one(frames, input_data_format="channels_last", return_tensors="pt").pixel_values for one in (own, plain)
    )
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    assert (expected - unlike).abs().max() > 0.1


def test_masks_are_covered_shares_in_time_order_where_the_object_is_seen(processor, make_request):
    request = make_request([[3, -1, 1], [2]], num_frames=4)
    nothing = np.zeros((36, 48), dtype=np.bool_)
    first = request.objects[0]
    first = ObjectRegion((*first.frames, 2), (*first.masks, nothing))
    request = request._replace(objects=(first, request.objects[1]))
    encoded = processor.encode(request, with_labels=True)
    masks = torch.cat([masks_of(first, [1, 3]), masks_of(request.objects[1], [2])])
    assert encoded.mask_frame_index.tolist() == [1, 3, 2]
    assert encoded.mask_object_index.tolist() == [0, 0, 1]
    assert torch.equal(encoded.mask_weights, coverage_weights(masks, GRID))
    assert encoded.mask_times.tolist() == [0.25, 0.75, 0.5]  # of 2 s, a frame every 0.5 s
    for mask, box in zip(masks.numpy(), encoded.mask_boxes, strict=True):
        rows, columns = np.nonzero(mask)
        edges = (columns.min() / 48, rows.min() / 36, (columns.max() + 1) / 48, (rows.max() + 1) / 36)
        assert box.tolist() == pytest.approx(edges)


def test_paper_exact_keeps_every_mask_in_the_order_given(exact_processor, make_request):
    request = make_request([[3, -1, 1], [-3]], num_frames=4, shown=(1, 2))
    encoded = exact_processor.encode(request, with_labels=True)
    weights = torch.zeros(4, *GRID)
    weights[[0, 2]] = official_weights(masks_of(request.objects[0], [3, 1]), GRID)
    assert torch.equal(encoded.mask_weights, weights)
    assert encoded.mask_object_index.tolist() == [0, 0, 0, 1]
    assert len(encoded.pixel_values) == 3  # frames 1, 2 and 3; the one without a mask is not needed
    assert encoded.mask_frame_index[[0, 2]].tolist() == [2, 0]
    assert encoded.mask_frame_index.max() < 3
    assert encoded.mask_frame_index.min() >= 0
    assert (encoded.input_ids == exact_processor.placeholder_id(REGION)).sum() == U + 1


def test_masks_of_several_sizes_lie_on_one_grid(processor, make_request):
    request = make_request([[0, 1, 2]])
    masks = [np.zeros(size, dtype=np.bool_) for size in ((4, 4), (8, 2), (4, 4))]
    masks[0][:2, :2] = masks[1][4:, 1:] = masks[2][2:, :] = True
    encoded = processor.encode(request._replace(objects=(ObjectRegion((0, 1, 2), tuple(masks)),)), with_labels=True)
    assert encoded.mask_weights.tolist() == [[[1, 0], [0, 0]], [[0, 0], [0, 1]], [[0, 0], [1, 1]]]


def test_times_before_and_after_the_span_count_as_its_ends(processor, make_request):
    request = make_request([[0, 1, 2, 3]])
    assert request.scene is not None
    scene = request.scene._replace(times_s=(9.0, 10.0, 11.0, 30.0), start_s=10.0, end_s=20.0)
    encoded = processor.encode(request._replace(scene=scene), with_labels=True)
    assert encoded.mask_times.tolist() == pytest.approx([0, 0, 0.1, 1])


def test_an_answer_is_cut_to_the_budget_and_then_has_no_end(processor, make_request):
    request = make_request([[0, 1, 2]], answer="A black cat.")
    whole = processor.encode(request, with_labels=True)
    cut = processor.encode(request, with_labels=True, max_length=len(whole.input_ids) - 5)
    assert cut.num_cut == 5
    assert torch.equal(cut.input_ids, whole.input_ids[:-5])
    assert torch.equal(cut.labels, whole.labels[:-5])
    assert processor.decode(cut.labels[cut.labels != IGNORED]) == "A black "


def test_the_budget_counts_visual_tokens(processor, make_request):
    asked = len(processor.encode(make_request([[0, 1]], answer=None), with_labels=False).input_ids)
    seen = 2 + U  # of the scene and of the object
    text = len(ids_of(processor, "<|im_start|>user\n\nWhat is []?<|im_end|>\n<|im_start|>assistant\n"))
    assert asked == text + seen
    processor.encode(make_request([[0, 1]], answer=None), with_labels=False, max_length=asked)
    reason, message = fault(processor, make_request([[0, 1]], answer=None), False, asked - 1)
    assert reason == "too_long"
    assert str(asked) in message
    assert str(asked - 1) in message


def test_at_least_one_token_of_the_answer_must_fit(processor, make_request):
    request = make_request([[0, 1]])
    asked = len(processor.encode(make_request([[0, 1]], answer=None), with_labels=False).input_ids)
    fitting = processor.encode(request, with_labels=True, max_length=asked + 1)
    assert (fitting.labels != IGNORED).sum() == 1
    assert fault(processor, request, True, asked)[0] == "too_long"


def test_earlier_answers_count_as_the_question(processor, make_request):
    first = make_request([], answer="A long answer that takes its room.")
    request = first._replace(messages=(*first.messages, Message("user", "And?"), Message("assistant", "No.")))
    question = processor.encode(request._replace(messages=request.messages[:-1]), with_labels=False)
    assert fault(processor, request, True, len(question.input_ids))[0] == "too_long"
    assert processor.encode(request, True, len(question.input_ids) + 2).num_cut == 2


def test_the_processor_has_a_budget_of_its_own(tiny_config, tiny_processor, make_request):
    assert fault(tiny_processor(tiny_config(), max_length=12), make_request())[0] == "too_long"


def test_an_object_seen_nowhere_is_refused(processor, make_request):
    reason, message = fault(processor, make_request([[0], [-1, -2]]))
    assert reason == "invisible"
    assert "object 1 is seen on none of its 2 frames" in message


def test_objects_without_a_scene_are_refused(processor, make_request):
    text = make_request(num_frames=0, question=f"What is {REGION}?")
    assert fault(processor, text._replace(objects=make_request().objects))[0] == "scene"


@pytest.mark.parametrize(
    "region",
    [
        ObjectRegion((), ()),
        ObjectRegion((0, 1), (np.ones((4, 4), np.bool_),)),
        ObjectRegion((4,), (np.ones((4, 4), np.bool_),)),
        ObjectRegion((-1,), (np.ones((4, 4), np.bool_),)),
        ObjectRegion((0,), (np.ones((4, 4), np.uint8),)),
        ObjectRegion((0,), (np.ones((1, 4, 4), np.bool_),)),
        ObjectRegion((0,), (np.ones((0, 4), np.bool_),)),
    ],
)
def test_masks_that_do_not_fit_are_refused(processor, exact_processor, make_request, region):
    request = make_request()._replace(objects=(region,))
    assert fault(processor, request)[0] == "masks"
    assert fault(exact_processor, request)[0] == "masks"


@pytest.mark.parametrize(
    "change",
    [
        {"frames": np.zeros((4, 8, 8), np.uint8)},
        {"frames": np.zeros((4, 8, 8, 3), np.float32)},
        {"times_s": (0.0,)},
        {"shown": ()},
        {"shown": (1, 0)},
        {"shown": (0, 0)},
        {"shown": (0, 4)},
        {"shown": (-1, 0)},
        {"is_image": True},
    ],
)
def test_scenes_that_do_not_fit_are_refused(processor, make_request, change):
    request = make_request([], question="What?")
    assert request.scene is not None
    assert fault(processor, request._replace(scene=request.scene._replace(**change)))[0] == "scene"


def test_a_template_that_drops_the_text_is_refused(processor, make_request):
    processor.tokenizer.chat_template = "{{ eos_token * (messages | length) }}"
    with pytest.raises(ValueError, match="keeps the turns' text"):
        processor.encode(make_request(), with_labels=True)


def mixed(make_request):
    """Requests of all shapes: text alone, an image, a scene without objects, several objects at different times."""
    return [
        make_request(num_frames=0, answer="Nothing."),
        make_request([[0], [0]], num_frames=1, is_image=True, seed=1),
        make_request([], num_frames=3, answer="Much, and told at length.", seed=2),
        make_request([[4], [1, 2, -4], [0, 1, 2, 3, 4]], num_frames=5, shown=(0, 2), seed=3),
        make_request(num_frames=0, answer="No."),
        make_request([[2]], num_frames=4, size_px=(20, 70), seed=4),
    ]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_its_requests_one_after_another(processor, make_request, side):
    processor.tokenizer.pad_token = "<|im_start|>"
    encoded = [processor.encode(request, with_labels=True) for request in mixed(make_request)]
    batch = processor.collate(encoded, side)
    first_frame = first_mask = first_object = 0
    for row, one in enumerate(encoded):
        length, longest = len(one.input_ids), batch.input_ids.shape[1]
        text = slice(longest - length, None) if side == "left" else slice(length)
        assert torch.equal(batch.input_ids[row, text], one.input_ids)
        assert torch.equal(batch.labels[row, text], one.labels)
        assert batch.attention_mask[row, text].all()
        assert batch.attention_mask[row].sum() == length
        assert (batch.labels[row] != IGNORED).sum() == (one.labels != IGNORED).sum()
        assert (batch.input_ids[row][batch.attention_mask[row] == 0] == processor.tokenizer.pad_token_id).all()

        masks = slice(first_mask, first_mask + len(one.mask_times))
        for name in ("mask_weights", "mask_boxes", "mask_times"):
            assert torch.equal(batch[name][masks], getattr(one, name))
        assert torch.equal(batch.mask_frame_index[masks], one.mask_frame_index + first_frame)
        assert torch.equal(batch.mask_object_index[masks], one.mask_object_index + first_object)
        assert torch.equal(batch.pixel_values[first_frame : first_frame + len(one.pixel_values)], one.pixel_values)
        first_frame += len(one.pixel_values)
        first_mask += len(one.mask_times)
        first_object += len(mixed(make_request)[row].objects)
    assert (first_frame, first_mask) == (len(batch.pixel_values), len(batch.mask_times))
    assert batch.mask_object_index.unique().tolist() == list(range(first_object))
    assert batch.scene_num_frames.tolist() == [1, 3, 2, 4]
    assert batch.scene_frame_index.tolist() == [0, 1, 2, 3, 4, 6, 9, 10, 11, 12]


def test_a_tokenizer_without_padding_token_is_padded_all_the_same(processor, make_request):
    processor.tokenizer.pad_token = None
    batch = processor([make_request([], answer=None), make_request(num_frames=0, answer=None)])
    assert batch.attention_mask[1, 0] == 0
    assert batch.input_ids[1, 0] < len(processor.tokenizer)


def test_a_batch_of_text_alone_has_empty_visual_parts(processor, make_request):
    texts = [make_request(num_frames=0, answer=None), make_request(num_frames=0, question="So?", answer=None)]
    batch = processor(texts)
    shapes = {name: tuple(batch[name].shape) for name in batch if name not in ("input_ids", "attention_mask")}
    assert shapes == {
        "pixel_values": (0, 3, SIDE_PX, SIDE_PX),
        "scene_frame_index": (0,),
        "scene_num_frames": (0,),
        "mask_weights": (0, *GRID),
        "mask_frame_index": (0,),
        "mask_object_index": (0,),
        "mask_boxes": (0, 4),
        "mask_times": (0,),
    }
    assert all(batch[name].dtype == torch.long for name in batch if name.endswith(("_index", "num_frames", "ids")))


def test_questions_are_batched_for_generation_with_padding_on_the_left(processor, make_request):
    requests = [make_request([[0], [1, 2]], answer=None), make_request(num_frames=0, answer=None)]
    batch = processor(requests)
    expected = processor.collate([processor.encode(request, with_labels=False) for request in requests], "left")
    assert set(batch) == set(expected) - {"labels"}
    assert all(torch.equal(batch[name], expected[name]) for name in batch)
    assert batch.attention_mask[1, 0] == 0
    assert batch.attention_mask[:, -1].all()
    assert processor.batch_decode(batch.input_ids[:, -11:]) == ["<|im_start|>assistant\n"] * 2


def test_a_batch_is_what_the_model_takes(tiny_config, tiny_processor, tiny_model, make_request):
    config = tiny_config()
    processor = tiny_processor(config)
    batch = processor.collate([processor.encode(request, with_labels=True) for request in mixed(make_request)], "right")
    assert list(batch) == processor.model_input_names
    model = tiny_model(config)
    assert torch.isfinite(model(**batch).loss)
    questions = [make_request([[0], [1, 2]], answer=None), make_request(num_frames=0, answer=None)]
    assert model.generate(**processor(questions), max_new_tokens=2, min_new_tokens=2, do_sample=False).shape == (2, 2)


def test_settings_survive_saving_and_loading(tmp_path, tiny_config, tiny_tokenizer, make_request):
    import model.auto  # noqa: F401 - registers the classes

    config = tiny_config(connector_stride=(1, 2, 1), num_object_tokens=3, num_frames=7, image_size_px=56)
    image_processor = SiglipImageProcessorPil(
        size={"height": 56, "width": 56}, resample=0, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]
    )
    saved = processor_for(config, tiny_tokenizer, image_processor, max_length=321)
    saved.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is VideoReferProcessor
    for name in ("grid_size", "num_frames", "connector_stride", "num_object_tokens", "paper_exact", "max_length"):
        assert getattr(loaded, name) == getattr(saved, name), name
    assert (loaded.grid_size, loaded.max_length, loaded.side_px) == ((4, 4), 321, 56)
    for before, after in zip(
        *([one.encode(request, True) for request in mixed(make_request)] for one in (saved, loaded)), strict=True
    ):
        assert all(torch.equal(getattr(before, name), getattr(after, name)) for name in Encoded._fields[:-1])


def test_no_bound_on_the_length_survives_saving(tmp_path, tiny_config, tiny_tokenizer, make_request):
    image_processor = SiglipImageProcessorPil(size={"height": SIDE_PX, "width": SIDE_PX})
    processor_for(tiny_config(), tiny_tokenizer, image_processor, None).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "processor_config.json").read_text())["max_length"] is None
    loaded = VideoReferProcessor.from_pretrained(tmp_path)
    assert loaded.encode(make_request([], answer="cat " * 2000), with_labels=True).num_cut == 0


def test_placeholders_get_ids_after_the_vocabulary_and_the_configuration_learns_them(tiny_config, tiny_tokenizer):
    vocabulary = json.loads(tiny_tokenizer.backend_tokenizer.to_str())
    vocabulary["added_tokens"] = [one for one in vocabulary["added_tokens"] if one["content"].startswith("<|")]
    backend = type(tiny_tokenizer.backend_tokenizer).from_str(json.dumps(vocabulary))
    bare = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    size = len(bare)
    config = tiny_config(video_token_id=-1, image_token_id=-1, region_token_id=-1)
    image_processor = SiglipImageProcessorPil(size={"height": SIDE_PX, "width": SIDE_PX})
    processor_for(config, bare, image_processor, None)
    assert (config.video_token_id, config.image_token_id, config.region_token_id) == (size, size + 1, size + 2)
    processor_for(config, bare, image_processor, None)
    assert len(bare) == size + 3


@pytest.mark.parametrize(
    "image_processor",
    [
        CLIPImageProcessorPil(size={"shortest_edge": SIDE_PX}),
        CLIPImageProcessorPil(size={"height": SIDE_PX, "width": SIDE_PX}),  # crops the centre
        SiglipImageProcessorPil(size={"height": SIDE_PX, "width": 2 * SIDE_PX}),
        SiglipImageProcessorPil(size={"height": SIDE_PX, "width": SIDE_PX}, do_resize=False),
    ],
)
def test_an_image_processor_that_does_not_show_whole_frames_as_squares_is_refused(
    tiny_config, tiny_tokenizer, image_processor
):
    with pytest.raises(ValueError, match="a plain resize to a square"):
        processor_for(tiny_config(), tiny_tokenizer, image_processor, None)


def test_an_image_processor_of_another_size_than_the_tower_is_refused(tiny_config, tiny_tokenizer):
    image_processor = SiglipImageProcessorPil(size={"height": 56, "width": 56})
    with pytest.raises(ValueError, match="gives 56 px, the tower takes 28 px"):
        processor_for(tiny_config(), tiny_tokenizer, image_processor, None)


def test_no_visible_object_is_without_weight_down_to_one_pixel(processor, make_request):
    request = make_request()
    for row, column in product((0, 17, 35), (0, 23, 47)):
        mask = np.zeros((36, 48), dtype=np.bool_)
        mask[row, column] = True
        encoded = processor.encode(request._replace(objects=(ObjectRegion((0,), (mask,)),)), with_labels=True)
        assert encoded.mask_weights.sum() > 0
