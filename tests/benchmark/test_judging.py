import asyncio
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmark.description_score import description_score
from benchmark.judge_reply import DIMENSIONS
from benchmark.judging import JudgeCase, JudgeGoneError, JudgeSettings, Judging, judge_cases
from benchmark.rubric import own_rubric
from infra.answer_cache import AnswerCache, payload_hash
from infra.chat import ChatLostError, ChatRefusedError, ChatSettings, ChatTooLongError
from infra.chat_client import ChatClient

ROOT = Path(__file__).resolve().parents[2]
SCORES = {"SC": 5, "AD": 3, "TD": 4, "HD": 2}
GOOD = json.dumps({name.lower().replace(" ", "_"): SCORES[key] for key, name in DIMENSIONS.items()})
RUN = """
import asyncio, json, sys
from pathlib import Path
from infra.answer_cache import AnswerCache
from benchmark.judging import JudgeCase, JudgeSettings, judge_cases
from benchmark.rubric import own_rubric
from infra.chat import ChatSettings
from infra.chat_client import ChatClient

async def main(url, folder, number):
    settings = ChatSettings(base_url=url, model="asked-judge", first_wait_s=0.01, max_wait_s=0.02)
    cases = [JudgeCase(item_id=str(i), reference=f"ref {i}", prediction=f"pred {i}") for i in range(int(number))]
    async with ChatClient(settings) as client:
        judging = await judge_cases(client, AnswerCache(Path(folder)), own_rubric(), JudgeSettings(), cases)
    print(judging.model_dump_json())

asyncio.run(main(*sys.argv[1:]))
"""


def start(server: Any, folder: Path, number: int) -> subprocess.Popen[bytes]:
    """A judging of its own process, to be killed."""
    command = [sys.executable, "-c", RUN, server.url, str(folder), str(number)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> Judging:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return Judging.model_validate_json(out)


def cases_of(*predictions: str | None) -> list[JudgeCase]:
    return [JudgeCase(item_id=f"i{n}", reference=f"ref {n}", prediction=text) for n, text in enumerate(predictions)]


def judged(server: Any, folder: Path, cases: list[JudgeCase], chat: Any = (), **settings: Any) -> Judging:
    quick = {"first_wait_s": 0.01, "max_wait_s": 0.02, "timeout_s": 5.0, "max_attempts": 4}

    async def run() -> Judging:
        asked = ChatSettings(base_url=server.url, model="asked-judge", **(quick | dict(chat)))
        async with ChatClient(asked) as client:
            return await judge_cases(client, AnswerCache(folder), own_rubric(), JudgeSettings(**settings), cases)

    return asyncio.run(run())


def candidate(payload: dict[str, Any]) -> str:
    """The description a question is about."""
    return str(payload["messages"][1]["content"].partition("Candidate:\n")[2])


def cached(folder: Path) -> set[str]:
    return {path.stem for path in folder.rglob("*.json")}


def until(condition: Any) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited 30 s in vain")


def test_killed_and_resumed_no_question_is_asked_twice(chat_server: Any, tmp_path: Path) -> None:
    folder, killed = tmp_path / "answers", threading.Event()
    room = threading.Semaphore(40)

    def script(_: object) -> Any:
        if killed.is_set() or room.acquire(blocking=False):
            return chat_server.said(GOOD)
        killed.wait(60)  # under way at the kill: received, and never answered
        return chat_server.reply(0)

    chat_server.script = script
    first = start(chat_server, folder, 100)
    until(lambda: len(cached(folder)) == 40 and len(chat_server.received) == 48)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    before = [payload_hash(payload) for payload in chat_server.answered]
    assert (len(before), set(before)) == (40, cached(folder))
    killed.set()
    judging = finish(start(chat_server, folder, 100))
    answers = Counter(payload_hash(payload) for payload in chat_server.answered)
    assert (len(answers), set(answers.values())) == (100, {1})
    assert len(chat_server.received) == 100 + 8  # the window that was under way
    assert (judging.asked, judging.cached) == (60, 40)
    assert [judgement.item_id for judgement in judging.judgements] == [str(i) for i in range(100)]
    assert all(judgement.scores == SCORES for judgement in judging.judgements)
    asked = len(chat_server.received)
    assert finish(start(chat_server, folder, 100)).judgements == judging.judgements
    assert len(chat_server.received) == asked


def test_killed_at_any_moment_what_was_kept_is_never_asked_again(chat_server: Any, tmp_path: Path) -> None:
    folder, draw = tmp_path / "answers", random.Random(3)

    def script(payload: dict[str, Any]) -> Any:
        time.sleep(0.004)
        return chat_server.said(
            GOOD if len(payload["messages"]) > 2 or int(candidate(payload).split()[1]) % 5 else "no marks"
        )

    chat_server.script = script
    kills = 0
    while kills < 4:
        kept, asked = cached(folder), len(chat_server.received)
        process = start(chat_server, folder, 300)
        until(lambda asked=asked: len(chat_server.received) > asked)
        time.sleep(draw.uniform(0, 0.25))
        process.kill()
        if process.wait() == 0:
            break
        kills += 1
        assert not kept & {payload_hash(payload) for payload in chat_server.received[asked:]}
    kept, asked = cached(folder), len(chat_server.received)
    judging = finish(start(chat_server, folder, 300))
    assert not kept & {payload_hash(payload) for payload in chat_server.received[asked:]}
    assert judging.cached == len(kept)
    assert all(judgement.scores == SCORES for judgement in judging.judgements)
    answers = Counter(payload_hash(payload) for payload in chat_server.answered)
    assert sum(answers.values()) - len(answers) <= 8 * kills
    assert kills == 4


def test_a_torn_or_foreign_answer_is_asked_again_and_replaced(chat_server: Any, tmp_path: Path) -> None:
    chat_server.script = lambda _: chat_server.said(GOOD)
    whole = judged(chat_server, tmp_path, cases_of("a", "b", "c"))
    first, second, third = sorted(tmp_path.rglob("*.json"))
    first.write_bytes(first.read_bytes()[:-20])
    second.write_bytes(b"")
    third.with_suffix(".tmp").write_bytes(b"{")
    again = judged(chat_server, tmp_path, cases_of("a", "b", "c"))
    assert (again.asked, again.cached) == (2, 1)
    assert again.judgements == whole.judgements
    assert judged(chat_server, tmp_path, cases_of("a", "b", "c")).asked == 0


def test_equal_questions_are_asked_once_even_at_the_same_time(chat_server: Any, tmp_path: Path) -> None:
    chat_server.script = lambda _: time.sleep(0.05) or chat_server.said(GOOD)
    cases = [JudgeCase(item_id=f"i{n}", reference="same", prediction="same") for n in range(8)]
    judging = judged(chat_server, tmp_path, cases)
    assert len(chat_server.received) == judging.asked == 1
    assert [judgement.scores for judgement in judging.judgements] == [SCORES] * 8


def test_a_changed_prompt_model_or_setting_is_another_question(chat_server: Any, tmp_path: Path) -> None:
    chat_server.script = lambda _: chat_server.said(GOOD)
    variants = [{}, {"chat": {"max_tokens": 9}}, {"reply_format": "text"}, {"explained": False}]
    for variant in variants:
        assert judged(chat_server, tmp_path, cases_of("a"), **variant).asked == 1
    assert judged(chat_server, tmp_path, cases_of("a"), max_reasks=0).asked == 0


def test_a_reply_that_cannot_be_used_is_shown_to_the_judge_with_its_error(chat_server: Any, tmp_path: Path) -> None:
    replies = iter(["none", GOOD.replace("3", "9"), GOOD])
    chat_server.script = lambda _: chat_server.said(next(replies))
    (judgement,) = judged(chat_server, tmp_path, cases_of("a"), max_reasks=2).judgements
    assert (judgement.scores, judgement.asks, judgement.reply) == (SCORES, 3, GOOD)
    last = chat_server.received[-1]["messages"]
    assert [message["role"] for message in last] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert last[2]["content"] == "none"
    assert "none of the four dimensions" in last[3]["content"]
    assert last[4]["content"] == GOOD.replace("3", "9")
    assert "Appearance Description: got '9'" in last[5]["content"]
    assert {payload["temperature"] for payload in chat_server.received} == {0.0}


def test_a_reply_that_ran_into_blanks_is_shown_without_them(chat_server: Any, tmp_path: Path) -> None:
    # what SmolLM2 wrote on vLLM under the schema; shown all its blanks, it wrote more of them
    blank = '{\n  "subject_correspondence": 1,\n\n"appearance_description":' + " \n" * 900
    chat_server.script = lambda payload: chat_server.said(GOOD if len(payload["messages"]) > 2 else blank)
    (judgement,) = judged(chat_server, tmp_path, cases_of("a dog")).judgements
    assert (judgement.scores, judgement.asks) == (SCORES, 2)
    shown = chat_server.received[-1]["messages"][2]["content"]
    assert shown == '{ "subject_correspondence": 1,\n\n"appearance_description": '


def test_re_asks_are_bounded_and_the_best_reply_counts(chat_server: Any, tmp_path: Path) -> None:
    replies = iter(["none", GOOD.replace("3", "9"), "none again", GOOD])
    chat_server.script = lambda _: chat_server.said(next(replies))
    (judgement,) = judged(chat_server, tmp_path, cases_of("a"), max_reasks=2).judgements
    assert len(chat_server.received) == judgement.asks == 3
    assert judgement.scores == {"SC": 5, "TD": 4, "HD": 2}
    assert judgement.unscored == {"AD": "out_of_range"}
    assert "9" in judgement.detail


def test_a_reply_cut_off_is_asked_again_and_gives_no_score(chat_server: Any, tmp_path: Path) -> None:
    replies = iter([chat_server.said(GOOD, "length"), chat_server.said(GOOD)])
    chat_server.script = lambda _: next(replies)
    (judgement,) = judged(chat_server, tmp_path / "1", cases_of("a")).judgements
    assert (judgement.scores, judgement.asks) == (SCORES, 2)
    chat_server.script = lambda _: chat_server.said(GOOD, "length")
    (judgement,) = judged(chat_server, tmp_path / "2", cases_of("a"), max_reasks=1).judgements
    assert judgement.unscored == dict.fromkeys(DIMENSIONS, "truncated")
    assert judgement.asks == 2


def test_text_replies_are_asked_for_without_a_schema(chat_server: Any, tmp_path: Path) -> None:
    text = "\n".join(f"{i}. **{name}**: [{i}]\nExplanation: 5" for i, name in enumerate(DIMENSIONS.values(), 1))
    chat_server.script = lambda _: chat_server.said(text)
    judging = judged(chat_server, tmp_path, cases_of("a"), reply_format="text")
    assert judging.judgements[0].scores == {"SC": 1, "AD": 2, "TD": 3, "HD": 4}
    assert "response_format" not in chat_server.received[0]


def test_every_case_is_accounted_for_whatever_the_judge_says(chat_server: Any, tmp_path: Path) -> None:
    def script(payload: dict[str, Any]) -> Any:
        said = {
            "refuse": chat_server.said(None, refusal="no"),
            "filter": chat_server.said("", "content_filter"),
            "empty": chat_server.said(""),
            "long": chat_server.reply(400, '{"error": {"message": "maximum context length is 512"}}'),
            "down": chat_server.reply(503),
        }
        return said.get(candidate(payload), chat_server.said(GOOD))

    chat_server.script = script
    cases = cases_of("fine", None, " \n", "refuse", "filter", "empty", "long", "down", "{prediction} \N{DOG}")
    judging = judged(chat_server, tmp_path, cases, max_reasks=1)
    reasons = [judgement.unscored.get("SC", "scored") for judgement in judging.judgements]
    wanted = ["scored", *["no_prediction"] * 2, *["refused"] * 2, "empty", "too_long", "no_reply", "scored"]
    assert reasons == wanted
    assert not any(candidate(payload).strip() == "" for payload in chat_server.received)
    score = description_score(judging.judgements, judging.judge, seed=0)
    assert (score.total.n_scored, score.total.n_items) == (2, 9)
    assert score.total.unscored == Counter(wanted[1:-1])
    chat_server.script = lambda _: chat_server.said(GOOD)
    again = judged(chat_server, tmp_path, cases, max_reasks=1)
    assert [judgement.unscored.get("SC", "scored") for judgement in again.judgements][6:8] == ["scored"] * 2


def test_in_a_storm_of_429_5xx_and_resets_every_item_gets_its_own_scores(chat_server: Any, tmp_path: Path) -> None:
    draw, lock = random.Random(1), threading.Lock()

    def script(payload: dict[str, Any]) -> Any:
        with lock:
            status = draw.choice([429, 500, 0, 200])
        number = int(candidate(payload))
        marks = dict(zip(DIMENSIONS, [number % 6, number // 6 % 6, number % 4, 5], strict=True))
        return chat_server.said(json.dumps(marks)) if status == 200 else chat_server.reply(status, "", "0")

    chat_server.script = script
    judging = judged(chat_server, tmp_path, cases_of(*map(str, range(80))), chat={"max_attempts": 60})
    assert [[*j.scores.values()] for j in judging.judgements] == [[n % 6, n // 6 % 6, n % 4, 5] for n in range(80)]
    assert len(chat_server.answered) == judging.asked == 80 < len(chat_server.received)
    assert chat_server.most_at_once <= 8


def test_a_server_that_goes_ends_the_run_and_the_next_one_goes_on(chat_server: Any, tmp_path: Path) -> None:
    chat_server.script = lambda _: (
        chat_server.said(GOOD) if len(chat_server.received) <= 20 else chat_server.reply(503, "gone")
    )
    with pytest.raises(JudgeGoneError, match=r"503: gone.*goes on"):
        judged(chat_server, tmp_path, cases_of(*map(str, range(60))))
    assert len(chat_server.received) < 20 + 15 * 4
    assert len(cached(tmp_path)) == 20
    chat_server.script = lambda _: chat_server.said(GOOD)
    assert judged(chat_server, tmp_path, cases_of(*map(str, range(60)))).asked == 40


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (401, '{"error": {"message": "wrong key"}}', ChatRefusedError),
        (404, '{"message": "no such model"}', ChatRefusedError),
        (503, "", ChatLostError),
        (400, '{"error": {"message": "maximum context length is 16"}}', ChatTooLongError),
    ],
)
def test_a_run_that_cannot_get_one_answer_ends_with_what_the_server_said(
    chat_server: Any, tmp_path: Path, status: int, body: str, error: type[Exception]
) -> None:
    chat_server.script = lambda _: chat_server.reply(status, body)
    with pytest.raises(error, match=str(status)):
        judged(chat_server, tmp_path, cases_of("a", "b"))
    assert cached(tmp_path) == set()


def test_a_result_says_who_judged_and_how_also_when_all_is_from_the_cache(chat_server: Any, tmp_path: Path) -> None:
    chat_server.script = lambda _: chat_server.said(GOOD)
    judging = judged(chat_server, tmp_path, cases_of("a", "b"), chat={"max_tokens": 300}, max_reasks=1)
    assert judging.judge.model_dump() == {
        "model_asked": "asked-judge",
        "models_answered": ("served-judge",),
        "server_versions": ("9.9.1",),
        "system_fingerprints": ("fp_1",),
        "rubric": "own words",
        "prompt_hash": own_rubric().prompt_hash("json", explained=True),
        "temperature": 0.0,
        "max_tokens": 300,
        "reply_format": "json",
        "explained": True,
        "max_reasks": 1,
    }
    assert judging.judge.version == "served-judge, fp_1, 9.9.1"
    assert judging.judge.settings == "temperature 0, max_tokens 300, replies as json, at most 1 re-asks"
    chat_server.stop()
    again = judged(chat_server, tmp_path, cases_of("a", "b"), chat={"max_tokens": 300}, max_reasks=1)
    assert (again.judge, again.judgements, again.asked) == (judging.judge, judging.judgements, 0)


def test_no_cases_need_no_server(chat_server: Any, tmp_path: Path) -> None:
    assert judged(chat_server, tmp_path, []).judgements == ()
    assert judged(chat_server, tmp_path, cases_of(None)).judgements[0].unscored["SC"] == "no_prediction"
    assert chat_server.received == []
