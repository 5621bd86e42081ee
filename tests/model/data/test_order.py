import collections
import itertools
import pickle
import time

import pytest

from model.data.order import Order, Part, local_positions


def places(order: Order, start: int, stop: int) -> list[tuple[int, int, int]]:
    return [tuple(order.place(position)) for position in range(start, stop)]


def test_an_epoch_takes_every_row_once_and_the_next_one_in_another_order() -> None:
    order = Order([Part((300, 256, 7)), Part((50,) * 30)], seed=3)
    first, second = (places(order, e * order.num_positions, (e + 1) * order.num_positions) for e in (0, 1))
    assert order.num_positions == 563 + 1500
    assert sorted(first) == [(s, i, 0) for s, size in ((0, 563), (1, 1500)) for i in range(size)]
    assert {place[2] for place in second} == {1}
    assert sorted(place[:2] for place in second) == sorted(place[:2] for place in first)
    assert [place[:2] for place in first] != [place[:2] for place in second]


def test_weights_say_how_often_an_epoch_takes_a_source() -> None:
    order = Order([Part((100,), 0.5), Part((1000,), 2.0)], seed=0)
    both = places(order, 0, 2 * order.num_positions)
    assert order.num_positions == 50 + 2000
    taken = collections.Counter(place[:2] for place in both)
    assert {taken[0, i] for i in range(100)} == {1}  # two epochs of one half each
    assert {taken[1, i] for i in range(1000)} == {4}


def test_sources_are_spread_evenly_over_the_epoch() -> None:
    order = Order([Part((30_000,)), Part((10_000,))], seed=0)
    sources = [place[0] for place in places(order, 0, order.num_positions)]
    shares = [sum(sources[at : at + 2000]) / 2000 for at in range(0, 40_000, 2000)]
    assert max(shares) < 0.28
    assert min(shares) > 0.22


def test_a_window_of_groups_is_done_before_the_next_one_begins() -> None:
    order = Order([Part((64,) * 40)], seed=1, window_groups=4)
    rows = [place[1] for place in places(order, 0, order.num_positions)]
    windows = [{row // 64 for row in rows[at : at + 256]} for at in range(0, 2560, 256)]
    assert all(len(groups) == 4 for groups in windows)
    assert len(set().union(*windows)) == 40
    assert sorted(rows[:256]) != rows[:256]


def test_the_same_arguments_give_the_same_order_in_any_process() -> None:
    order = Order([Part((64, 3)), Part((5,), 7.5)], seed=9)
    again = pickle.loads(pickle.dumps(order))
    assert places(again, 500, 700) == places(order, 500, 700)
    assert places(Order([Part((64, 3)), Part((5,), 7.5)], seed=10), 500, 700) != places(order, 500, 700)


def test_a_far_position_costs_no_more_than_a_near_one() -> None:
    order = Order([Part((256,) * 2000), Part((256,) * 500)], seed=0)
    far = 1_000_000_000
    order.place(far)
    start = time.process_time()
    for position in range(far, far + 100):
        order.place(position)
    assert (time.process_time() - start) / 100 < 0.005
    assert order.place(far).epoch == far // order.num_positions


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_a_step_whatever_their_number(world_size: int) -> None:
    shares = [local_positions(5, 8, rank, world_size) for rank in range(world_size)]
    assert list(itertools.chain(*shares)) == list(range(40, 48))


def test_ranks_that_do_not_divide_the_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="3 ranks must divide the global batch of 8"):
        local_positions(0, 8, 0, 3)


@pytest.mark.parametrize("part", [Part(()), Part((0,)), Part((4,), 0.0)])
def test_a_source_without_rows_or_weight_is_refused(part: Part) -> None:
    with pytest.raises(ValueError, match="needs rows and a weight above 0"):
        Order([part], seed=0)
