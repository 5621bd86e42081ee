"""Shot cuts on made videos, and on the packaged clips where they were fetched."""

from collections.abc import Callable
from pathlib import Path

import pytest

from infra.scenes import shots
from infra.video import probe
from infra.weights import fetch, weight_path

MakeVideo = Callable[..., Path]


def test_cuts_are_found_at_the_first_frame_of_each_scene(make_video: MakeVideo) -> None:
    path = make_video(num_frames=60, cuts=(20, 27, 44), options={"bf": "3", "g": "12"})
    assert shots(path, 0, 60) == [(0, 20), (20, 27), (27, 44), (44, 60)]


def test_a_span_is_cut_in_the_numbers_of_the_file(make_video: MakeVideo) -> None:
    path = make_video(num_frames=60, cuts=(20, 44), options={"bf": "3", "g": "12"})
    assert shots(path, 10, 40) == [(10, 20), (20, 40)]


def test_steady_motion_is_one_shot(make_video: MakeVideo) -> None:
    assert shots(make_video(num_frames=60), 0, 60) == [(0, 60)]


@pytest.mark.weights
@pytest.mark.parametrize(
    ("clip", "cuts"),
    [
        ("clip-bikes", [30, 76, 137, 187, 242]),  # TransNetV2 names the frame before each
        ("clip-bigbuckbunny", []),
        ("clip-carphone", []),
    ],
)
def test_cuts_of_the_packaged_clips_are_those_of_transnet(clip: str, cuts: list[int]) -> None:
    fetch([clip], print)
    path = weight_path(clip)
    assert [first for first, _ in shots(path, 0, probe(path).num_frames)][1:] == cuts
