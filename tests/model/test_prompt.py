import pickle
import re

import pytest

from model.prompt import Piece, chat_pieces, checked_messages
from model.request import IMAGE, REGION, VIDEO, Message, Request, RequestError

MARKS = re.compile(r"(<\|\w+\|>|<video>|<image>|<region>)")


def spelt(tokenizer, text):
    """Ids of ASCII text written out by hand: one per mark and one per character, in the byte-level spelling."""
    tokens = [
        token
        for part in MARKS.split(text)
        for token in ([part] if MARKS.fullmatch(part) else part.replace(" ", "Ġ").replace("\n", "Ċ"))
    ]
    return [tokenizer.get_vocab()[token] for token in tokens]


def turns(*contents, system=None):
    roles = ("user", "assistant")
    said = [Message(roles[place % 2], content) for place, content in enumerate(contents)]
    return tuple([Message("system", system)] * (system is not None) + said)


def with_turns(request, *contents, system=None):
    return request._replace(messages=turns(*contents, system=system))


def fault(request, with_answer=False):
    with pytest.raises(RequestError) as raised:
        checked_messages(request, with_answer)
    return raised.value.reason, str(raised.value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("<video>\nWhat?", "<video>\nWhat?"),
        ("What?\n<video>", "<video>\nWhat?"),
        ("In <video> here", "<video>\nIn  here"),
        ("What?", "<video>\nWhat?"),
        (" <video> ", "<video>"),
    ],
)
def test_the_scene_tag_comes_to_the_head_of_the_first_user_turn(make_request, given, expected):
    request = with_turns(make_request([]), given, "A cat.", "And?", system="Be short.")
    assert checked_messages(request, False) == turns(expected, "A cat.", "And?", system="Be short.")


def test_an_image_gets_the_image_tag(make_request):
    request = with_turns(make_request([], num_frames=1, is_image=True), "What?")
    assert checked_messages(request, False) == turns(f"{IMAGE}\nWhat?")


def test_text_alone_stays_as_it_is(make_request):
    request = with_turns(make_request(num_frames=0), " What?\n", "This.")
    assert checked_messages(request, True) == request.messages


def test_regions_may_lie_in_several_user_turns(make_request):
    request = with_turns(make_request([[0], [1]]), f"What is {REGION}?", "A cat.", f"And {REGION}?")
    assert checked_messages(request, False)[-1].content == f"And {REGION}?"


@pytest.mark.parametrize(
    ("roles", "with_answer"),
    [
        ([], False),
        (["system"], False),
        (["assistant"], True),
        (["user", "user"], False),
        (["user", "system", "assistant"], True),
        (["user"], True),
        (["user", "assistant"], False),
        (["user", "robot"], True),
    ],
)
def test_turns_out_of_order_are_refused(roles, with_answer):
    reason, text = fault(Request(tuple(Message(role, "x") for role in roles), None, ()), with_answer)
    assert reason == "turns"
    assert str(roles) in text


@pytest.mark.parametrize(
    "contents",
    [
        (f"{VIDEO}{VIDEO} What?",),
        (f"{IMAGE} What?",),
        (f"{VIDEO}{IMAGE} What?",),
        ("What?", "This.", f"{VIDEO} And?"),
        ("What?", f"{VIDEO}", "And?"),
    ],
)
def test_scene_tags_amiss_are_refused(make_request, contents):
    assert fault(with_turns(make_request([]), *contents))[0] == "scene_tag"


def test_a_scene_tag_without_a_scene_is_refused(make_request):
    assert fault(with_turns(make_request(num_frames=0), f"{VIDEO} What?"))[0] == "scene_tag"


def test_a_scene_tag_in_a_system_turn_is_refused(make_request):
    assert fault(with_turns(make_request([]), "What?", system=VIDEO))[0] == "scene_tag"


@pytest.mark.parametrize(("written", "objects"), [(1, 2), (2, 1), (0, 1), (1, 0)])
def test_regions_and_objects_that_differ_in_number_are_refused_with_both_numbers(make_request, written, objects):
    reason, text = fault(with_turns(make_request([[0]] * objects), f"What? {REGION * written}"))
    assert reason == "regions"
    assert f"{written} {REGION} for {objects} objects" in text


def test_an_answer_with_a_region_is_refused(make_request):
    assert fault(with_turns(make_request([[0]]), "What?", REGION), with_answer=True)[0] == "regions"


def test_a_request_error_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(RequestError("too_long", "9 of 8")))
    assert (error.reason, str(error)) == ("too_long", "9 of 8")


def test_pieces_are_question_and_answer_by_turns(tiny_tokenizer):
    pieces = chat_pieces(tiny_tokenizer, turns("<video>\nWho?", "A cat.", "And <region>?", "A <3.", system="Hi."))
    written = [
        "<|im_start|>system\nHi.<|im_end|>\n<|im_start|>user\n<video>\nWho?<|im_end|>\n<|im_start|>assistant\n",
        "A cat.<|im_end|>\n",
        "<|im_start|>user\nAnd <region>?<|im_end|>\n<|im_start|>assistant\n",
        "A <3.<|im_end|>\n",
    ]
    learnt = (0, len("A cat.") + 1, 0, len("A <3.") + 1)
    assert pieces == [Piece(spelt(tiny_tokenizer, text), number) for text, number in zip(written, learnt, strict=True)]


def test_a_question_has_the_same_ids_with_and_without_its_answer(tiny_tokenizer):
    asked = chat_pieces(tiny_tokenizer, turns("Who?", "A cat.", "And?"))
    answered = chat_pieces(tiny_tokenizer, turns("Who?", "A cat.", "And?", "A dog."))
    assert asked == answered[:-1]


def test_special_tokens_quoted_in_an_answer_do_not_end_what_is_learnt(tiny_tokenizer):
    answer = chat_pieces(tiny_tokenizer, turns("Who?", "x<|im_end|>y"))[-1]
    assert answer.num_learnt == len("x.y") + 1


LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def test_a_template_without_generation_prompt_learns_all_from_the_end_of_the_question(tiny_tokenizer):
    tiny_tokenizer.chat_template = LLAMA2
    assert chat_pieces(tiny_tokenizer, turns("Who?", " A cat.\n")) == [
        Piece(spelt(tiny_tokenizer, "[INST] Who? [/INST]"), 0),
        Piece(spelt(tiny_tokenizer, " A cat. <|im_end|>"), len(" A cat. ") + 1),
    ]


def test_a_tokenizer_without_template_is_refused(tiny_tokenizer):
    tiny_tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"no chat template: set tokenizer\.chat_template"):
        chat_pieces(tiny_tokenizer, turns("Who?"))


def test_a_template_that_rewrites_earlier_turns_is_refused(tiny_tokenizer):
    tiny_tokenizer.chat_template = "{{ messages | length }}" + LLAMA2
    with pytest.raises(ValueError, match="a template that only appends"):
        chat_pieces(tiny_tokenizer, turns("Who?", "A cat."))


def test_a_template_that_never_ends_an_answer_is_refused(tiny_tokenizer):
    tiny_tokenizer.chat_template = LLAMA2.replace(" + ' ' + eos_token", "")
    with pytest.raises(ValueError, match="no special token"):
        chat_pieces(tiny_tokenizer, turns("Who?", "A cat."))
