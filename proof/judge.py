"""A real judge end to end, for the way from items to marks and not for the marks: run by `make judge`.

A vLLM server with SmolLM2-135M-Instruct, on this machine's processor, marks 40 Bench-D items made of synthetic clips.
What it marks is no model's: half of the descriptions are the item's own reference, half that of another item, so that
the table shows whether the judge knows right from wrong. Exits 1 where in four scores as JSON not every item gets all
four, where the same command again sends a request, or where the report does not say that the scores mean nothing. The
other two forms of replies are tried and told.
"""

import argparse
import asyncio
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from clips import write_source
from command import videorefer
from judge_server import MODEL_NAME, Counts, counts, on_processors
from rich.console import Console
from rich.table import Table

from benchmark.description_score import DescriptionScore
from benchmark.items import DescriptionItem, description_items
from benchmark.judging import JudgeCase, Judgement, judge_cases
from benchmark.predictions import Prediction, write_predictions
from benchmark.rubric import own_rubric
from flows.bench_plan import chat_settings
from flows.bench_record import JUDGE_FOLDER, REPLIES, REPORT_FILE, Judged, Replies
from flows.bench_table import read_results
from infra.answer_cache import AnswerCache
from infra.chat_client import ChatClient
from infra.vllm.process import VllmError, vllm_server
from model.embedded import save_language_model

NUM_CLIPS, NUM_ITEMS = 24, 40
NEEDED: Replies = "scores"
MAX_TOKENS: dict[Replies, int] = {NEEDED: 128, "explained": 160, "text": 160}
"""No reply of four scores has as many characters; with explanations one takes some 100, where it does not run on."""
REPLY_S = 600
"""Before a reply counts as lost: the machine may have other work."""
HERE = Path(__file__).parent
console = Console(width=160)


class Row(NamedTuple):
    """One run of the command: what came of it, what it cost, and the processor time of the command alone."""

    name: str
    score: DescriptionScore
    used: Counts
    wall_s: float
    client_s: float


def main() -> int:
    """Prepare, serve, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("proof-judge-out"), help="where everything goes")
    out: Path = parser.parse_args().out
    if out.exists():
        parser.error(f"{out} is there already; a proof starts from nothing: remove it, or name another folder")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server is stopped then too
    start_s = time.monotonic()
    try:
        items = _items(out)
        save_language_model(out / "checkpoint")
        with vllm_server(on_processors(out / "checkpoint"), (MODEL_NAME,), out / "server.log") as url:
            ready_s = time.monotonic()
            rows = [_judged(out, url, NEEDED), _judged(out, url, NEEDED, "the same again")]
            rows += [_judged(out, url, replies) for replies in MAX_TOKENS if replies != NEEDED]
            marks = _marks(out, url, items)
    except (VllmError, subprocess.CalledProcessError) as error:
        console.print(f"NOT REACHED: {error}", style="red", soft_wrap=True)
        return 1
    _print(rows, marks)
    console.print(f"{(ready_s - start_s) / 60:.0f} minutes until the server was up, {_minutes(start_s)} in all")
    failures = _failures(rows[0], rows[1], (out / NEEDED / REPORT_FILE).read_text(encoding="utf-8"))
    for failure in failures:
        console.print(f"NOT REACHED: {failure}", style="red")
    return 1 if failures else 0


def _items(out: Path) -> list[DescriptionItem]:
    """Items from clips that are all held out, and the file of what is to be marked."""
    lake = out / "lake"
    manifest = write_source(out / "source", 0, NUM_CLIPS)
    videorefer("build", "--source", manifest, "--lake", lake, "--profile", HERE / "build.toml")
    videorefer("bench", "new", "--lake", lake, "--out", out / "items", "--num", NUM_ITEMS)
    items = list(description_items(out / "items" / "bench-d.json"))
    described = [
        Prediction(item_id=item.item_id, pred=text) for item, text in zip(items, _descriptions(items), strict=True)
    ]
    write_predictions(_described(out), items, described)
    return items


def _described(out: Path) -> Path:
    return out / "references-half-of-them-swapped.jsonl"


def _descriptions(items: Sequence[DescriptionItem]) -> list[str]:
    """What is marked of each item: its own reference, or that of the next."""
    return [items[place if _is_own(place) else (place + 1) % len(items)].caption for place in range(len(items))]


def _is_own(place: int) -> bool:
    """Whether the item at that place is described by its own reference."""
    return place % 2 == 0


def _judge(url: str, replies: Replies) -> Judged:
    return Judged(
        base_url=f"{url}/v1",
        model=MODEL_NAME,
        prompt_file="",
        replies=replies,
        max_tokens=MAX_TOKENS[replies],
        concurrency=8,
        timeout_s=REPLY_S,
    )


def _judged(out: Path, url: str, replies: Replies, name: str = "") -> Row:
    """The command as anyone would give it, with what it cost."""
    judge = _judge(url, replies)
    before, start_s, client_s = counts(url), time.monotonic(), _children_s()
    asked = ("--items", out / "items" / "bench-d.json", "--predictions", _described(out), "--out", out / replies)
    by = ("--judge", judge.base_url, "--judge-model", judge.model, "--judge-replies", replies)
    limits = ("--judge-max-tokens", judge.max_tokens, "--judge-concurrency", judge.concurrency)
    videorefer("bench", "d", *asked, *by, *limits, "--judge-timeout", REPLY_S)
    (result,) = read_results([out / replies]).values()
    assert isinstance(result.score, DescriptionScore)
    return Row(
        name=name or replies,
        score=result.score,
        used=counts(url).since(before),
        wall_s=time.monotonic() - start_s,
        client_s=_children_s() - client_s,
    )


def _marks(out: Path, url: str, items: Sequence[DescriptionItem]) -> tuple[Judgement, ...]:
    """The marks of each item, from the answers that the command kept."""
    cases = [
        JudgeCase(item_id=item.item_id, reference=item.caption, prediction=text)
        for item, text in zip(items, _descriptions(items), strict=True)
    ]

    async def read() -> tuple[Judgement, ...]:
        async with ChatClient(chat_settings(_judge(url, NEEDED))) as client:
            cache = AnswerCache(out / NEEDED / JUDGE_FOLDER)
            return (await judge_cases(client, cache, own_rubric(), REPLIES[NEEDED], cases)).judgements

    return asyncio.run(read())


def _failures(first: Row, again: Row, report: str) -> list[str]:
    """What of the goal was not reached."""
    total, found = first.score.total, []
    if (total.n_items, total.n_scored) != (NUM_ITEMS, NUM_ITEMS):
        found.append(f"{total.n_scored} of {total.n_items} items scored in full, {NUM_ITEMS} of them are needed")
    if again.used.num_requests:
        found.append(f"the same command again sent {again.used.num_requests} requests")
    if again.score != first.score:
        found.append("the same command again came to other scores")
    if "mean nothing" not in report:
        found.append(f"{REPORT_FILE} does not say that such scores mean nothing")
    return found


def _print(rows: Sequence[Row], marks: Sequence[Judgement]) -> None:
    columns = ("replies", "items", "scored in full", "unscored", "requests", "tokens read", "tokens written")
    table = Table(*columns, "written / s", "minutes", "client's CPU, s", box=None)
    for row in rows:
        total = row.score.total
        unscored = ", ".join(f"{n} {reason}" for reason, n in total.unscored.items()) or "0"
        told = (row.name, total.n_items, total.n_scored, unscored, *row.used)
        rate = f"{row.used.num_reply_tokens / row.wall_s:.0f}"
        table.add_row(*map(str, told), rate, f"{row.wall_s / 60:.1f}", f"{row.client_s:.0f}")
    console.print(table)
    own, others = (
        [sum(mark.scores.values()) / len(mark.scores) for place, mark in enumerate(marks) if _is_own(place) is own]
        for own in (True, False)
    )
    console.print(
        f"mean mark of the item's own reference {sum(own) / len(own):.2f}, of another item's "
        f"{sum(others) / len(others):.2f}: a judge worth its name would give 5 and little",
        highlight=False,
    )


def _children_s() -> float:
    """Processor seconds of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _minutes(start_s: float) -> str:
    return f"{(time.monotonic() - start_s) / 60:.0f}"


if __name__ == "__main__":
    sys.exit(main())
