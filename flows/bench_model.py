"""A model that answers items of a bench: by what it says, or by the likelihood of each option. Loads torch."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers.utils import logging

from benchmark.items import DescriptionItem, QuestionItem
from benchmark.published import Mode, Scorer
from flows.ask import model_folder
from flows.bench_answers import Answer
from flows.bench_record import MissingItem, ModelAnswers
from flows.bench_requests import Asker, Shown
from flows.train_base import load_base
from flows.train_profile import FolderBase
from infra.video import VideoError
from model.answering import answer, option_scores
from model.data.item import BadItemError
from model.data.scene import scene_config
from model.request import RequestError

_LETTER = re.compile(r"^\s*\([A-Z]\)\s*")

Item = QuestionItem | DescriptionItem


class _Asked(NamedTuple):
    item: Item
    shown: Shown


class BenchModel:
    """A model folder, on the GPU where there is one, asked greedily.

    By likelihood, the question is asked alone and each option, without its letter, is held against it as the answer:
    the likeliest is chosen, and its text with the letter is the prediction. Log probabilities are summed over tokens: a
    mean favours long options, which are right less often than others.
    """

    def __init__(self, answers: ModelAnswers, mode: Mode, scorer: Scorer) -> None:
        logging.disable_progress_bar()
        folder, _ = model_folder(Path(answers.model))
        network, self._processor = load_base(FolderBase(kind="model", path=str(folder)), seed=0)
        self._network = (network.cuda() if torch.cuda.is_available() else network).eval()
        self._scorer, self._max_new_tokens = scorer, answers.max_new_tokens
        config = scene_config(self._processor, single_frame_share=0.0)
        self._asker = Asker(Path(answers.videos), mode, scorer, config)

    def answers(
        self, batch: Sequence[tuple[Item, Mapping[str, Any]]]
    ) -> tuple[tuple[Answer, ...], tuple[MissingItem, ...]]:
        """An answer for each item, of all at once, or why there is none."""
        asked: list[_Asked] = []
        missing: list[MissingItem] = []
        for item, row in batch:
            try:
                asked.append(_Asked(item, self._asker.request(item, row)))
            except (BadItemError, VideoError) as error:
                missing.append(_missing(item, error))
        try:
            return tuple(self._said(asked)), tuple(missing)
        except RequestError:  # of one item; the others are asked without it
            said: list[Answer] = []
            for one in asked:
                try:
                    said += self._said([one])
                except RequestError as error:
                    missing.append(_missing(one.item, error))
            return tuple(said), tuple(missing)

    def _said(self, asked: Sequence[_Asked]) -> list[Answer]:
        if self._scorer == "likelihood":
            texts = [self._likeliest(one) for one in asked]
        else:
            requests = [one.shown.request for one in asked]
            texts = answer(self._network, self._processor, requests, self._max_new_tokens)
        return [
            Answer(item_id=one.item.item_id, pred=text, num_off_frame=one.shown.num_off_frame)
            for one, text in zip(asked, texts, strict=True)
        ]

    def _likeliest(self, asked: _Asked) -> str:
        assert isinstance(asked.item, QuestionItem)
        options = asked.item.options
        texts = [_LETTER.sub("", option) for option in options]
        scores = option_scores(self._network, self._processor, asked.shown.request, texts)
        return max(zip(scores, options, strict=True), key=lambda pair: pair[0].log_probability)[1]


def _missing(item: Item, error: BadItemError | VideoError | RequestError) -> MissingItem:
    return MissingItem(item_id=item.item_id, reason=error.reason, said=" ".join(str(error).split()))
