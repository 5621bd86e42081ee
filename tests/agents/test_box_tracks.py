import numpy as np
import pytest

from agents.base import Detection
from agents.engines.box_tracks import BoxLinker, BoxTrack, BoxTrackConfig
from agents.engines.flow_field import FlowField
from schemas.record import BoxXyxyPx

NUM_FRAMES = 7


def still_frames() -> np.ndarray:
    image = np.random.default_rng(0).integers(60, 190, (120, 200, 3), dtype=np.uint8)
    return np.stack([image] * NUM_FRAMES)


def car(x: float, score: float = 0.9) -> Detection:
    box: BoxXyxyPx = (x, 40, x + 40, 80)
    return Detection(detector_class="car", score=score, box_xyxy_px=box)


def link(detections: dict[int, list[Detection]], **config: float) -> list[BoxTrack]:
    frames = still_frames()
    times_s = [number / 10 for number in range(NUM_FRAMES)]
    return BoxLinker(frames, times_s, FlowField(frames, 1.5), BoxTrackConfig(**config)).link(detections)


def test_two_side_by_side_keep_their_own_detections() -> None:
    tracks = link({0: [car(30), car(80)], 3: [car(82), car(31)], 6: [car(33), car(81)]})
    assert [sorted(track.support) for track in tracks] == [[0, 3, 6]] * 2
    assert [round(track.boxes[6][0], -1) for track in tracks] == [30, 80]


@pytest.mark.parametrize(("margin", "ends"), [(0.2, True), (0.0, False)])
def test_where_two_could_be_either_both_tracks_end(margin: float, ends: bool) -> None:
    tracks = link({0: [car(46), car(66)], 3: [car(55), car(57)], 6: [car(55), car(57)]}, min_margin=margin)
    first, second = tracks[:2]
    assert (max(first.support), max(second.support)) == ((0, 0) if ends else (6, 6))
    if ends:
        assert max(first.boxes) < 3
        assert max(second.boxes) < 3
        assert sorted(tracks[2].support) == [3, 6]


def test_a_lost_one_is_found_again_only_where_no_other_choice_is_near() -> None:
    looked: dict[int, list[Detection]] = {0: [car(60)], 3: []}
    (found,) = link(looked | {6: [car(88)]})
    assert sorted(found.support) == [0, 6]
    either = link(looked | {6: [car(20), car(100)]})
    assert [sorted(track.support) for track in either] == [[0], [6], [6]]


def test_sure_flow_carries_a_track_to_where_no_detection_was() -> None:
    (track,) = link({0: [], 2: [], 4: [car(60)], 6: [car(60)]}, max_tail=0)
    assert min(track.boxes) == 0
