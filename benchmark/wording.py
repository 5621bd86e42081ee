"""The words in which a model is asked about an item."""

from benchmark.items import QuestionItem
from schemas.sample import REGION


def question_prompt(item: QuestionItem) -> str:
    """The official Bench-Q prompt: question, options, and how to answer, on one line.

    The marks of regions stay as the file has them, as in the official VideoLLaMA3 script; the v1 script writes them in
    square brackets. The mark of the video is the processor's business.
    """
    return f"{item.question} {' '.join(item.options)}. Answer with the option's letter from the given choices directly."


def description_prompt() -> str:
    """The Bench-D prompt, with one region: a question that the refiner asks for detailed descriptions.

    The official scripts mean the same in other words, v1 of a "highlighted" and VideoLLaMA3 of a "marked" object.
    """
    return f"Please describe {REGION} in the video in detail."
