"""Answers stop where they end, and options are scored as the answers they would be."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from model.answering import answer, end_ids, option_scores
from model.request import Message, Request

Make = Callable[..., Any]


@pytest.fixture
def asked(make_request: Callable[..., Request]) -> list[Request]:
    return [
        make_request(((0, 1, 2), (3,)), seed=1, answer=None),
        make_request((), num_frames=0, answer=None),
        make_request(((0,),), num_frames=1, is_image=True, seed=2, answer=None),
    ]


def taught(model: Any, processor: Any, requests: list[Request], texts: list[str]) -> None:
    """Trains the tiny model until it gives these answers."""
    batch = processor.collate(
        [
            processor.encode(request._replace(messages=(*request.messages, turn(text))), True)
            for request, text in zip(requests, texts, strict=True)
        ],
        "left",
    )
    model.vision_tower.requires_grad_(False)
    optimiser = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        model.train()(**batch).loss.backward()
        optimiser.step()
    model.eval()


def turn(text: str) -> Message:
    return Message("assistant", text)


def test_answers_of_a_batch_are_stripped_and_stop_at_the_end_of_the_turn(
    tiny_model: Make, tiny_processor: Make, asked: list[Request]
) -> None:
    model = tiny_model()
    processor = tiny_processor(model.config)
    texts = ["a red car", " no ", "two"]
    taught(model, processor, asked, texts)
    assert answer(model, processor, asked, max_new_tokens=20) == ["a red car", "no", "two"]
    assert answer(model, processor, asked[:1], max_new_tokens=5) == ["a red"]
    model.generation_config.repetition_penalty = 50.0
    model.generation_config.eos_token_id = None
    assert answer(model, processor, asked, max_new_tokens=20) == ["a red car", "no", "two"]
    assert answer(model, processor, [], max_new_tokens=20) == []


def test_an_answer_ends_at_the_chat_end_and_at_every_eos(tiny_model: Make, tiny_processor: Make) -> None:
    model = tiny_model()
    processor = tiny_processor(model.config)
    processor.tokenizer.eos_token = "<|endoftext|>"
    model.generation_config.eos_token_id = [2, 9]
    assert end_ids(model, processor) == [2, 0, 9]


@pytest.mark.parametrize("paper_exact", [False, True])
def test_option_scores_are_those_of_a_pass_over_each_whole_answer(
    tiny_model: Make, tiny_processor: Make, asked: list[Request], paper_exact: bool
) -> None:
    model = tiny_model(paper_exact=paper_exact)
    processor = tiny_processor(model.config)
    options = ["(A) left", "no", "It moves to the right."]
    for request in asked:
        scores = option_scores(model, processor, request, options)
        for score, option in zip(scores, options, strict=True):
            whole = processor.encode(request._replace(messages=(*request.messages, turn(option))), True)
            with torch.no_grad():
                output = model(**processor.collate([whole], "left"))
            assert score.num_tokens == output.num_labels == len(option) + 1
            assert score.log_probability == pytest.approx(-output.loss_sum.item(), abs=1e-3)


def test_the_scene_passes_the_model_once_for_all_options(
    tiny_model: Make, tiny_processor: Make, asked: list[Request]
) -> None:
    model = tiny_model()
    passes: list[str] = []
    for name in ("vision_tower", "connector", "object_encoder"):
        getattr(model, name).register_forward_hook(lambda *_given, part=name: passes.append(part))
    option_scores(model, tiny_processor(model.config), asked[0], ["a", "b", "c", "d"])
    assert passes == ["vision_tower", "connector", "object_encoder"]
