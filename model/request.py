"""What is asked of the model: text, one scene of frames, and the objects that the text refers to, in plain arrays.

Everything that reads pixels ends here (training data, `videorefer ask`, benchmarks), and the processor turns it into
tensors.
"""

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Role = Literal["system", "user", "assistant"]

VIDEO = "<video>"
IMAGE = "<image>"
REGION = "<region>"


class Message(NamedTuple):
    """One turn; `content` holds `<video>` or `<image>` at most once in the first user turn, and `<region>` per object.

    The three are reserved words: wherever they stand they are placeholders, so they cannot be quoted as text. Answers
    and system turns hold none of them; an answer names an object by `<object0>`, `<object1>`.
    """

    role: Role
    content: str


class Scene(NamedTuple):
    """The frames of one video span, or one image.

    `frames` (F, height, width, 3) uint8 RGB are all distinct frames needed, in time order; `times_s` (F,) when each is
    shown. `shown` are the places in `frames` of those that the whole scene is shown by (at least one, rising); masks of
    objects may lie on these or on others. `start_s` and `end_s` bound the span. An image has one frame and a span of
    0 s.
    """

    frames: npt.NDArray[np.uint8]
    times_s: tuple[float, ...]
    shown: tuple[int, ...]
    start_s: float
    end_s: float
    is_image: bool = False


class ObjectRegion(NamedTuple):
    """One object: bool masks (height, width) of any size on frames of the scene, None where it is out of sight.

    `frames` are places in `Scene.frames`.
    """

    frames: tuple[int, ...]
    masks: tuple[npt.NDArray[np.bool_] | None, ...]


class Request(NamedTuple):
    """One sample: `objects` in the order of the `<region>` in `messages`; text alone has neither scene nor objects."""

    messages: tuple[Message, ...]
    scene: Scene | None
    objects: tuple[ObjectRegion, ...]


RequestFault = Literal["turns", "scene_tag", "regions", "scene", "masks", "invisible", "too_long"]


class RequestError(ValueError):
    """A request that cannot be shown to the model; nothing is wrong with the processor, so a loader may skip it.

    `reason` is one of a few words, for counting: `turns` (roles out of order), `scene_tag` (`<video>` or `<image>`
    amiss), `regions` (`<region>` and objects differ), `scene` or `masks` (arrays that do not fit), `invisible` (an
    object seen on no frame), `too_long` (no room for the question). The text says what was got and what is allowed.
    """

    def __init__(self, reason: RequestFault, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[1])
