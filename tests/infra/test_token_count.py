"""What is spent counts for whoever asked, however many ask at once, and through every kind of pool."""

import asyncio
from collections.abc import Sequence

from infra.async_pool import AsyncPool
from infra.pool import LocalPool
from infra.token_count import TokenCount, added, spend, start_meter
from schemas.clip import Clip
from schemas.mention import MentionSet


def clip(name: str) -> Clip:
    return Clip(
        clip_id=name, source_id="s", video="a.mp4", video_sha256="0" * 64, license="CC0", start_s=0, end_s=1,
        start_frame=0, end_frame=30, fps=30, height_px=4, width_px=4, caption="fine",
    )  # fmt: skip


def cost(clip_id: str) -> TokenCount:
    """Told apart by the number in the clip's id."""
    number = int(clip_id[1:])
    return TokenCount(requests=1, prompt_tokens=10**number, completion_tokens=number)


class Spending:
    """Spends in two steps, the second in a task of its own, while others are in flight; clip c9 raises after that."""

    def __init__(self) -> None:
        self.tries = 0

    async def setup(self) -> None:
        pass

    async def process_one(self, job: Clip) -> MentionSet:
        spend(TokenCount(cached=1))
        await asyncio.sleep(0.01)
        await asyncio.create_task(self.ask(job))
        if job.clip_id == "c9":
            raise ValueError("no answer")
        return MentionSet(clip_id=job.clip_id, mentions=(), rejected=())

    async def ask(self, job: Clip) -> None:
        spend(cost(job.clip_id))

    async def probe(self) -> None:
        pass

    async def close(self) -> None:
        pass


def test_each_micro_batch_is_told_what_its_own_jobs_spent_all_tries_of_them() -> None:
    jobs = [clip(f"c{number}") for number in (1, 2, 3, 9)]
    with AsyncPool(Spending, window=4, batch_size=2, timeout_s=5.0, max_attempts=2) as pool:
        spent = {tuple(o.job.clip_id for o in batch.outcomes): batch.tokens for batch in pool.run(0, jobs)}
    twice = TokenCount(cached=2)
    assert spent[("c1", "c2")] == cost("c1") + cost("c2") + twice
    assert spent[("c3", "c9")] == cost("c3") + cost("c9") + cost("c9") + TokenCount(cached=3)


class Working:
    def __init__(self, asks: bool) -> None:
        self.asks = asks

    def setup(self) -> None:
        spend(TokenCount(requests=100))  # of nobody's clip

    def process(self, jobs: Sequence[Clip]) -> list[MentionSet]:
        for job in jobs:
            if self.asks:
                spend(cost(job.clip_id))
        return [MentionSet(clip_id=job.clip_id, mentions=(), rejected=()) for job in jobs]

    def close(self) -> None:
        pass


def test_a_worker_that_asks_a_server_tells_too_and_one_that_asks_none_has_no_count() -> None:
    for asks, expected in ((True, [cost("c1") + cost("c2"), cost("c3")]), (False, [None, None])):
        with LocalPool(lambda asks=asks: Working(asks), batch_size=2) as pool:
            assert [batch.tokens for batch in pool.run(0, [clip(f"c{n}") for n in (1, 2, 3)])] == expected


def test_an_inner_meter_counts_in_place_of_the_outer_and_without_one_nothing_does() -> None:
    async def ask() -> tuple[TokenCount | None, TokenCount | None]:
        outer = start_meter()
        spend(TokenCount(requests=1))

        async def inside() -> TokenCount | None:
            inner = start_meter()
            spend(TokenCount(requests=10))
            return inner.count

        return await asyncio.create_task(inside()), outer.count

    spend(TokenCount(requests=1000))
    assert asyncio.run(ask()) == (TokenCount(requests=10), TokenCount(requests=1))


def test_counts_add_up_and_read_as_a_line() -> None:
    one, other = TokenCount(requests=2, prompt_tokens=1200), TokenCount(cached=3, reasks=1, completion_tokens=45)
    assert (added(None, None), added(one, None), added(None, other)) == (None, one, other)
    assert str(added(one, other) or one) == "2 requests (3 more cached, 1 re-asks), 1,200 + 45 tokens"
