import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from agents.engines.frame_windows import in_a_thread, read_ahead
from infra.video import Frames


def numbered(places: Sequence[int]) -> Frames:
    return np.array(list(places), dtype=np.uint8)[:, None, None, None]


@pytest.mark.parametrize("places", [range(10), range(9, -1, -1), [3, 1, 4], [7], []])
@pytest.mark.parametrize("size", [1, 3, 20])
def test_every_place_comes_once_in_order_with_its_frame(places: Sequence[int], size: int) -> None:
    windows = list(read_ahead(numbered, places, size))
    assert [place for window, _ in windows for place in window] == list(places)
    assert all(len(window) <= size for window, _ in windows)
    assert all(list(window) == frames[:, 0, 0, 0].tolist() for window, frames in windows)


def test_the_next_window_is_read_meanwhile_and_only_that_one() -> None:
    read: list[int] = []
    done = threading.Semaphore(0)

    def noting(places: Sequence[int]) -> Frames:
        read.append(places[0])
        done.release()
        return numbered(places)

    windows = read_ahead(noting, range(8), 2)
    next(windows)
    assert done.acquire(timeout=10)
    assert done.acquire(timeout=10)  # the second window, without being asked for
    assert not done.acquire(timeout=0.2)
    assert read == [0, 2]
    assert [window[0] for window, _ in windows] == [2, 4, 6]


def test_an_error_comes_when_its_window_is_due() -> None:
    def failing(places: Sequence[int]) -> Frames:
        if 3 in places:
            raise ValueError("frame 3 cannot be read")
        return numbered(places)

    windows = read_ahead(failing, range(6), 2)
    assert next(windows)[0][0] == 0
    with pytest.raises(ValueError, match="frame 3"):
        next(windows)


def test_a_reader_that_stops_early_leaves_no_thread() -> None:
    before = threading.active_count()
    windows = read_ahead(numbered, range(100), 2)
    next(windows)
    windows.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("ahead", [1, 2])
def test_items_are_made_here_and_worked_on_elsewhere_so_many_ahead_of_the_reader(ahead: int) -> None:
    made: list[int] = []
    here, elsewhere = threading.get_ident(), set()

    def items() -> Iterator[int]:
        for number in range(6):
            assert threading.get_ident() == here
            made.append(number)
            yield number

    def doubled(number: int) -> int:
        elsewhere.add(threading.get_ident())
        return 2 * number

    results = in_a_thread(doubled, items(), ahead)
    assert next(results) == 0
    assert made == list(range(ahead + 1))
    assert list(results) == [2, 4, 6, 8, 10]
    assert len(elsewhere) == 1
    assert here not in elsewhere
