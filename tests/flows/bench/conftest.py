"""Bench runs of a tiny model over items of a test's own, without Prefect."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

import flows.bench_model
from flows.bench_plan import plan_bench
from flows.bench_record import BenchAsked, BenchResult, ModelAnswers, Questions
from flows.bench_work import alone, predict, score
from model.request import Request


class Bench:
    """Runs in folders of a test's own, where `a.mp4` lies; items have their masks in its frames 3, 20 and 30."""

    height_px, width_px = 64, 96

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model

    def square(self, left_px: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        mask = np.zeros((self.height_px, self.width_px), np.bool_)
        mask[10:20, left_px : left_px + 10] = True
        return mask

    def masks(self, *frames: int, absent: tuple[int, ...] = ()) -> dict[str, Any]:
        """An object as the official files have it; its mask begins at as many pixels as its frame's number."""
        return {str(n): {"segmentation": None if n in absent else self._rle(n)} for n in sorted({*frames, *absent})}

    def question(self, number: int, **changes: Any) -> dict[str, Any]:
        row = {
            "id": number, "video": "a.mp4", "Question": f"What is <object0><region> number {number}?",
            "type": "Basic Questions" if number % 2 else "Future Predictions",
            "options": ["(A) A hat", "(B) A long coat", "(C) Shoes", "(D) A watch"], "Answer": "(B) A long coat",
            "frame_idx": "20", "annotation": [self.masks(3, 20, 30)],
        }  # fmt: skip
        return row | changes

    def description(self, number: int, **changes: Any) -> dict[str, Any]:
        row = {
            "id": number, "video": "a.mp4", "caption": "A red dog runs to the left.", "frame_idx": "20",
            "annotation": [self.masks(3, 20, 30)],
        }  # fmt: skip
        return row | changes

    def asked(self, rows: list[dict[str, Any]], out: str = "out", **changes: Any) -> BenchAsked:
        items = self.folder / "items.json"
        items.write_text(json.dumps(rows))
        how = {"model": str(self.model), "videos": str(self.folder), "batch_size": 4, "max_new_tokens": 3}
        answers = ModelAnswers(**(how | changes.pop("how", {})))
        whole = {
            "items": str(items), "out": str(self.folder / out), "mode": "single", "answers": answers,
            "scoring": Questions(scorer="letters"),
        }  # fmt: skip
        return BenchAsked(**(whole | changes))

    def run(self, asked: BenchAsked) -> BenchResult:
        planned = plan_bench(asked)
        with alone(asked, planned) as out:
            return score(asked, planned, predict(asked, planned, out, ()), out, ())

    def _rle(self, left_px: int) -> dict[str, Any]:
        made = coco.encode(np.asfortranarray(self.square(left_px), np.uint8))
        return {"size": [self.height_px, self.width_px], "counts": made["counts"].decode()}


@pytest.fixture
def bench(tiny: Any, make_video: Callable[..., Path], tmp_path: Path) -> Bench:
    """40 frames of 96 x 64 pixels in `a.mp4`, each with its number in it."""
    make_video("a.mp4", options={"g": "10"})
    return Bench(tmp_path, tiny.model)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[Request]]:
    """The batches of requests that reach the model, which then says "(B)"."""
    batches: list[list[Request]] = []

    def answer(network: Any, processor: Any, requests: Any, max_new_tokens: int) -> list[str]:
        batches.append(list(requests))
        return ["(B)"] * len(requests)

    monkeypatch.setattr(flows.bench_model, "answer", answer)
    return batches
