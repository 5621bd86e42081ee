"""Answers to requests, and how likely given answers are: what `videorefer ask`, benchmarks and proofs call."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import GenerationConfig

from model.modeling import VideoReferForConditionalGeneration, positions
from model.processing import VideoReferProcessor
from model.prompt import chat_pieces
from model.request import Message, Request


class OptionScore(NamedTuple):
    """`log_probability` (natural logarithm) of an option as the answer, end token and all, over its `num_tokens`."""

    log_probability: float
    num_tokens: int


def answer(
    model: VideoReferForConditionalGeneration,
    processor: VideoReferProcessor,
    requests: Sequence[Request],
    max_new_tokens: int,
) -> list[str]:
    """The likeliest next token after the other until the answer's end, all requests in one batch; stripped text.

    The requests end with a question. An answer ends at the tokenizer's EOS, at what its chat template ends a turn with,
    or at an EOS of the model's generation configuration, of which nothing else is used. Raises as
    `VideoReferProcessor.encode` does. The model should be in evaluation mode.
    """
    if not requests:
        return []
    ends = end_ids(model, processor)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, eos_token_id=ends, pad_token_id=ends[0], **_PLAIN
    )
    batch = processor(requests).to(model.device)
    rows: list[list[int]] = model.generate(**batch, generation_config=settings).tolist()
    answers = [row[: next((place for place, token in enumerate(row) if token in ends), len(row))] for row in rows]
    return [text.strip() for text in processor.tokenizer.batch_decode(answers, skip_special_tokens=True)]


_PLAIN = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
"""Set, so that those of the model's generation configuration do not count (Qwen2 has a penalty of 1.05)."""


def end_ids(model: VideoReferForConditionalGeneration, processor: VideoReferProcessor) -> list[int]:
    """Ids after which an answer is complete, the one of the chat template first."""
    configured = model.generation_config.eos_token_id
    others = configured if isinstance(configured, list) else [configured]
    known = [_answer_ids(processor, (Message("user", "?"),), "!")[-1], processor.tokenizer.eos_token_id, *others]
    return list(dict.fromkeys(token for token in known if token is not None))


@torch.no_grad()
def option_scores(
    model: VideoReferForConditionalGeneration,
    processor: VideoReferProcessor,
    request: Request,
    options: Sequence[str],
) -> list[OptionScore]:
    """How likely each option is as the answer to the request's last question; at least one option.

    Frames, objects and question pass the model once, whatever the number of options, which then continue it as one
    batch. Raises as `VideoReferProcessor.encode` does. The model should be in evaluation mode.
    """
    batch = processor([request]).to(model.device)
    spliced = model.splice(**batch)
    position = int(spliced.attention_mask.sum())
    asked = model.language_model(
        **spliced._asdict(), position_ids=positions(spliced.attention_mask), use_cache=True, logits_to_keep=1
    )
    rows = [torch.tensor(_answer_ids(processor, request.messages, option)) for option in options]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
    places = torch.arange(ids.shape[1], device=ids.device)
    inside = places < torch.tensor([len(row) for row in rows], device=ids.device)[:, None]
    asked.past_key_values.batch_repeat_interleave(len(options))
    continued = model.language_model(
        input_ids=ids,
        attention_mask=torch.cat([spliced.attention_mask.expand(len(options), -1), inside.long()], 1),
        position_ids=(position + places).expand_as(ids),
        past_key_values=asked.past_key_values,
    )
    logits = torch.cat([asked.logits.expand(len(options), -1, -1), continued.logits[:, :-1]], 1)
    scores = logits.float().log_softmax(-1).gather(2, ids[..., None])[..., 0].where(inside, 0.0).sum(1)
    return [OptionScore(score, len(row)) for score, row in zip(scores.tolist(), rows, strict=True)]


def _answer_ids(processor: VideoReferProcessor, messages: Sequence[Message], answer_text: str) -> list[int]:
    """The ids that are learnt of an answer to the messages, its end token last."""
    piece = chat_pieces(processor.tokenizer, [*messages, Message("assistant", answer_text)])[-1]
    return piece.token_ids[: piece.num_learnt]
