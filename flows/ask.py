"""`videorefer ask`: a question about objects of one frame of a video or an image, put to a trained model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agents.questions import ask_many
from flows.ask_objects import AskError, Mask, ObjectFound, ObjectGiven, check_objects, find_objects, write_overlay
from flows.train_base import MODEL_TYPES, base_labels, load_base
from flows.train_profile import FolderBase
from flows.train_record import MODEL_FOLDER, TrainingError, read_record
from infra.frame_folder import Image, read_picture
from infra.video import VideoError, VideoInfo, probe, read_frames, shrunk
from schemas.record import Record
from schemas.sample import REGION

_NO_RECORD = "no label: no training record lies beside it"


class Answered(Record):
    """An answer and all that it came from; `question` is as the model read it, but for the tag of the video.

    `label` is that of the model's training, `weights` the model folder's name with a digest of its configuration and
    weight files. `frame_idx` and `frame_time_s` are of the frame on which the objects were given.
    """

    answer: str
    question: str
    model: str
    weights: str
    label: str
    video: str
    is_image: bool
    frame_idx: int
    frame_time_s: float
    objects: tuple[ObjectFound, ...]
    overlay: str | None


class _Media(NamedTuple):
    """A video, or an image where `info` is None, and the frame that objects are given on, at full size."""

    path: Path
    info: VideoInfo | None
    frame: Image
    frame_idx: int
    frame_time_s: float


def ask(
    model: Path,
    video: Path,
    question: str,
    given: tuple[ObjectGiven, ...],
    at_s: float | None,
    max_new_tokens: int,
    overlay: Path | None,
    say: Callable[[str], None],
) -> Answered:
    """Answer a question about the `given` objects of the frame shown at `at_s` (the first if None), or about none.

    The scene is the whole video, by as many frames as the model was trained with, chosen by the same rule. The overlay
    is written before the model is asked. `say` is told what is fetched and found. Raises AskError for what is asked
    amiss, WeightError, and OSError where the overlay cannot be written.
    """
    folder, label = model_folder(model)
    media = _media(video, at_s)
    text = with_regions(question, len(given))
    checked = check_objects(given, (media.frame.shape[0], media.frame.shape[1]))
    masks, found = find_objects(media.frame, given, checked, say)
    if overlay is not None:
        write_overlay(overlay, media.frame, masks)
    return Answered(
        answer=_answer(folder, media, masks, text, max_new_tokens),
        question=text,
        model=str(folder),
        weights=base_labels(FolderBase(kind="model", path=str(folder)))[0].weights,
        label=label,
        video=str(video),
        is_image=media.info is None,
        frame_idx=media.frame_idx,
        frame_time_s=media.frame_time_s,
        objects=found,
        overlay=None if overlay is None else str(overlay),
    )


def with_regions(question: str, num_objects: int) -> str:
    """The question with one `<region>` per object, in the grammar of the shards (`agents.questions`).

    A question without any gets them: one in front for one object; for more, the line that lists them as `<object0>`,
    `<object1>`, by which the question may call them. Raises AskError where it is empty or has another number of them.
    """
    question = question.strip()
    if not question:
        raise AskError("the question is empty")
    got = question.count(REGION)
    if got == num_objects:
        return question
    if got:
        raise AskError(
            f"the question has {got} {REGION} for {num_objects} objects; give an object for each with --box, --point "
            f"or --mask, or leave {REGION} out"
        )
    return f"{REGION} {question}" if num_objects == 1 else ask_many(question, num_objects)


def model_folder(model: Path) -> tuple[Path, str]:
    """The folder that holds the weights, of a training's folder the one inside, and the label of its training."""
    folder = model / MODEL_FOLDER if (model / MODEL_FOLDER / "config.json").is_file() else model
    if not folder.is_dir():
        raise AskError(f"there is no model folder {model}; give what `videorefer train --out` wrote")
    try:
        base_labels(FolderBase(kind="model", path=str(folder)))
        found = json.loads((folder / "config.json").read_bytes()).get("model_type")
        if found not in MODEL_TYPES:
            raise AskError(f"{folder} holds a model of type {found!r}; allowed are {' and '.join(MODEL_TYPES)}")
        record = read_record(folder.parent) if folder.name == MODEL_FOLDER else None
    except TrainingError as error:
        raise AskError(str(error)) from error
    return folder, _NO_RECORD if record is None or record.outcome is None else record.outcome.label


def _media(path: Path, at_s: float | None) -> _Media:
    try:
        info = probe(path)
    except VideoError as error:
        if error.reason != "still_image" or path.is_dir():
            raise AskError(str(error)) from error
        if at_s:
            raise AskError(f"{path.name} is an image, which has no time {at_s:g} s; leave --at out") from error
        return _Media(path, None, _read_image(path), 0, 0.0)
    if at_s is not None and not 0 <= at_s < info.duration_s:
        raise AskError(f"--at {at_s:g} is outside {path.name}, which lasts from 0 to below {info.duration_s:.3f} s")
    frame_idx = 0 if at_s is None else int(np.searchsorted(info.frame_time_s, at_s, side="right")) - 1
    try:
        frame = read_frames(path, [frame_idx], max(info.height_px, info.width_px))[0]
    except VideoError as error:
        raise AskError(str(error)) from error
    return _Media(path, info, frame, frame_idx, info.frame_time_s[frame_idx])


def _read_image(path: Path) -> Image:
    try:
        return read_picture(path)
    except VideoError as error:
        raise AskError(str(error)) from error


def _answer(folder: Path, media: _Media, masks: tuple[Mask, ...], question: str, max_new_tokens: int) -> str:
    import torch
    from transformers.utils import logging

    from model.answering import answer
    from model.request import Message, Request, RequestError

    logging.disable_progress_bar()
    network, processor = load_base(FolderBase(kind="model", path=str(folder)), seed=0)
    if torch.cuda.is_available():
        network = network.cuda()
    try:
        scene, regions = _shown(media, masks, processor)
        request = Request((Message("user", question),), scene, regions)
        (said,) = answer(network.eval(), processor, (request,), max_new_tokens)
    except (RequestError, VideoError) as error:
        raise AskError(str(error)) from error
    return said


def _shown(media: _Media, masks: tuple[Mask, ...], processor: Any) -> tuple[Any, Any]:
    """The scene and the objects in it, each with its one mask."""
    from model.data.scene import long_side_px, mid_segment
    from model.request import ObjectRegion, Scene

    info = media.info
    if info is None:
        height_px, width_px = media.frame.shape[:2]
        frames = shrunk(media.frame, long_side_px(processor.side_px, height_px, width_px))[None]
        return Scene(frames, (0.0,), (0,), 0.0, 0.0, is_image=True), tuple(ObjectRegion((0,), (m,)) for m in masks)
    shown = mid_segment(info.num_frames, processor.num_frames)
    wanted = sorted({*shown, media.frame_idx} if masks else shown)
    scene = Scene(
        frames=read_frames(media.path, wanted, long_side_px(processor.side_px, info.height_px, info.width_px)),
        times_s=tuple(info.frame_time_s[index] for index in wanted),
        shown=tuple(wanted.index(index) for index in shown),
        start_s=0.0,
        end_s=info.duration_s,
    )
    return scene, tuple(ObjectRegion((wanted.index(media.frame_idx),), (mask,)) for mask in masks)
