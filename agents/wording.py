"""Facts as English, and whether the facts survive when a model words them anew.

Directions and contact are those of the image plane, and the sentences say so ("in the frame"). Times are in seconds
from the start of the clip.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from schemas.caption import AppearanceFacts, Contact, MotionFacts, ObjectCaption
from schemas.record import Record
from schemas.words import COLOURS, Direction, Place, Speed


def _vocabulary(words: str) -> frozenset[str]:
    return frozenset(words.split())


_HE = _vocabulary("man boy gentleman guy father son husband brother king prince groom policeman fisherman")
_SHE = _vocabulary("woman girl lady mother daughter wife sister queen princess bride policewoman")
_TO: dict[Direction, str] = {
    "left": "to the left",
    "right": "to the right",
    "up": "up",
    "down": "down",
    "toward": "toward the camera",
    "away": "away from the camera",
}
_SPEED: dict[Speed, tuple[str, str]] = {
    "still": ("", ""),
    "slow": ("slowly", ""),
    "moderate": ("", "at moderate speed"),
    "fast": ("quickly", ""),
}
MOSTLY_FROM = 0.5
"""Share of pixels from which an object is "mostly" of a colour."""
_MAX_CONTACTS_TOLD = 2

_RESERVED = re.compile(r"<(region|video|image|audio|object\d+)>", re.IGNORECASE)


def escape_tags(text: str) -> str:
    """Foreign text with the tags that the format reserves written as ‹region›: in angle quotes, thus not a tag."""
    return _RESERVED.sub(r"‹\1›", text)


class Subject(NamedTuple):
    """A noun as it stands in sentences."""

    noun: str
    is_person: bool

    @property
    def the(self) -> str:
        """The noun with its article."""
        return f"the {self.noun}"

    @property
    def it(self) -> str:
        """he, she or it; a person whose noun does not tell is named again."""
        if self.noun in _HE:
            return "he"
        if self.noun in _SHE:
            return "she"
        return self.the if self.is_person else "it"


def subject_of(caption: ObjectCaption) -> Subject:
    """The caption's object as a subject of sentences."""
    return Subject(escape_tags(caption.noun), caption.appearance_facts.detector_class == "person")


def sentence(text: str) -> str:
    """The text with a capital and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def listing(words: Sequence[str]) -> str:
    """Red; red and black; red, black and white."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def with_article(noun: str) -> str:
    """A car, an umbrella; by the first letter, which is right for the names of things detectors know."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def place_name(places: Sequence[Place]) -> str:
    """The top left; the middle."""
    vertical = [word for word in places if word in ("top", "bottom")]
    return "the " + " ".join([*vertical, *(word for word in places if word not in vertical)])


def at_place(places: Sequence[Place]) -> str:
    """On the left; at the top left; in the middle."""
    if places[0] == "middle":
        return "in the middle"
    return f"{'on' if tuple(places) in (('left',), ('right',)) else 'at'} {place_name(places)}"


def seconds(time_s: float, clip_start_s: float) -> str:
    """A moment as the texts give it, from the clip's start."""
    return f"{max(0.0, time_s - clip_start_s):.1f} s"


def colours_clause(subject: Subject, facts: AppearanceFacts) -> str:
    """The car is mostly red, with some black. A person's colours are those of skin, hair and clothes alike."""
    names = [share.colour for share in facts.colours[:3]]
    if not names:
        return f"{subject.the} has no dominant colour"
    if subject.is_person:
        main = f"the main colour seen on {subject.the}, clothing included, is"
        return f"{main if len(names) == 1 else main.replace('colour', 'colours', 1)[:-2] + 'are'} {listing(names)}"
    if facts.colours[0].share < MOSTLY_FROM:
        return f"{subject.the} is {listing(names)}"
    rest = f", with some {listing(names[1:])}" if len(names) > 1 else ""
    return f"{subject.the} is mostly {names[0]}{rest}"


def size_clause(facts: AppearanceFacts) -> str:
    """Looks large in the frame. Size is that of the picture, not of the thing."""
    return "looks medium-sized in the frame" if facts.size == "medium" else f"looks {facts.size} in the frame"


def heading(facts: MotionFacts) -> str:
    """Slowly to the right; to the right at moderate speed. Only for objects that move."""
    before, after = _SPEED[facts.speed]
    return " ".join(part for part in (before, _TO[facts.direction], after) if part)


def direction_phrase(direction: Direction) -> str:
    """To the left; toward the camera. Only for objects that move."""
    return _TO[direction]


def motion_clause(facts: MotionFacts) -> str:
    """A predicate: moves slowly to the right, from the left to the middle of the frame."""
    if not facts.moves:
        return f"hardly moves and stays {at_place(facts.start_places)} of the frame"
    if facts.start_places == facts.end_places:
        return f"moves {heading(facts)}, staying {at_place(facts.end_places)} of the frame"
    start, end = place_name(facts.start_places), place_name(facts.end_places)
    return f"moves {heading(facts)}, from {start} to {end} of the frame"


def told_contacts(contacts: Sequence[Contact]) -> list[Contact]:
    """The longest contact with each object, the two longest in order of time."""
    longest: dict[str, Contact] = {}
    for contact in sorted(contacts, key=lambda item: (item.start_s - item.end_s, item.start_s)):
        longest.setdefault(contact.track_id, contact)
    return sorted(list(longest.values())[:_MAX_CONTACTS_TOLD], key=lambda item: (item.start_s, item.track_id))


def contact_clause(noun: str, contacts: Sequence[Contact], clip_start_s: float) -> str:
    """A predicate: touches the man from 0.4 s to 2.1 s and the dog from 1.0 s to 3.0 s."""
    return "touches " + listing(
        [
            f"the {'other ' if contact.noun == noun else ''}{escape_tags(contact.noun)} "
            f"from {seconds(contact.start_s, clip_start_s)} to {seconds(contact.end_s, clip_start_s)}"
            for contact in told_contacts(contacts)
        ]
    )


def view_clause(from_s: float, to_s: float, clip_start_s: float, clip_end_s: float) -> str:
    """A predicate: is in view for the whole clip, where no more than 5 % (or 0.2 s) is missing at either end."""
    slack_s = max(0.2, 0.05 * (clip_end_s - clip_start_s))
    if from_s - clip_start_s <= slack_s and clip_end_s - to_s <= slack_s:
        return "is in view for the whole clip"
    return f"is in view from {seconds(from_s, clip_start_s)} to {seconds(to_s, clip_start_s)}"


def merge(appearance: str, motion: str, subject: Subject) -> str:
    """One paragraph: appearance, then motion without the sentences it repeats, the noun said once as the subject."""
    said = _sentences(appearance)
    known = {text.lower() for text in said}
    for text in _sentences(motion):
        if text.lower() in known:
            continue
        prefix = f"{subject.the} "
        if said and text.lower().startswith(prefix):
            text = sentence(f"{subject.it} {text[len(prefix) :].rstrip('.')}")
        said.append(text)
        known.add(text.lower())
    return " ".join(said)


class Fact(Record):
    """One thing a text must say: `name` for people, `pattern` a regular expression over lower-case text."""

    name: str
    pattern: str

    def stands_in(self, text: str) -> bool:
        """Whether the text says it."""
        return re.search(self.pattern, text.lower()) is not None


def facts_of(caption: ObjectCaption, clip_start_s: float) -> tuple[Fact, ...]:
    """Everything that a text on this object may say of it, in the wordings that count as saying it."""
    noun = re.escape(caption.noun.lower())
    facts = [Fact(name=f"noun {caption.noun}", pattern=rf"^(the|a|an|this) {noun}\b|^the [^.]* seen on the {noun}\b")]
    look, motion = caption.appearance_facts, caption.motion_facts
    # without "seen on", the colours of clothes would become those of the person
    facts.append(Fact(name=f"seen on the {caption.noun}", pattern=rf"\bcolours? seen on the {noun}\b"))
    facts += [Fact(name=f"mostly {share.colour}", pattern=rf"\bmostly {share.colour}\b") for share in look.colours[:1]]
    facts += [Fact(name=share.colour, pattern=rf"\b{share.colour}\b") for share in look.colours]
    facts.append(Fact(name=look.size, pattern=rf"\b{look.size}\b"))
    if motion.moves:
        facts.append(Fact(name=f"moving {motion.direction}", pattern=rf"\bmov\w+ [^.,]*\b{_TO[motion.direction]}\b"))
        start, end = place_name(motion.start_places), place_name(motion.end_places)
        facts.append(Fact(name=f"from {start} to {end}", pattern=rf"\bfrom {start} to {end} of the frame\b"))
        speed = " ".join(part for part in _SPEED[motion.speed] if part)
        facts.append(Fact(name=speed, pattern=rf"\b{speed}\b"))
    else:
        facts.append(Fact(name="hardly moves", pattern=r"\b(hardly|barely) mov"))
    facts.append(Fact(name=at_place(motion.start_places), pattern=rf"\b{at_place(motion.start_places)}\b"))
    for contact in told_contacts(caption.contacts):
        span = _span_pattern(contact.start_s, contact.end_s, clip_start_s)
        other = re.escape(contact.noun.lower())
        facts.append(
            Fact(name=f"touching the {contact.noun}", pattern=rf"\btouch\w*\b{_WITHIN}\bthe (other )?{other} {span}")
        )
    facts.append(Fact(name="in view for the whole clip", pattern=r"\b(whole|entire) clip\b"))
    span = _span_pattern(caption.visible_from_s, caption.visible_to_s, clip_start_s)
    facts.append(Fact(name="in view from and to", pattern=rf"\b(in view|visible) {span}"))
    return tuple(facts)


def lost_facts(text: str, source: str, facts: Sequence[Fact]) -> list[str]:
    """What `source` says and `text` does not: names of facts, in order."""
    return [fact.name for fact in facts if fact.stands_in(source) and not fact.stands_in(text)]


def added_words(text: str, source: str) -> list[str]:
    """Words of `text` that `source` has not, or has less often.

    Words that only join (articles, pronouns, forms of the verbs in use) are free; colours, places, directions, speeds
    and numbers may not come more often than in `source`, any other word only if `source` has it.
    """
    source_words, text_words = Counter(_words(source)), Counter(_words(text))
    added = [
        word
        for word, count in text_words.items()
        if word not in _GLUE and (count > source_words[word] if _is_fact_word(word) else word not in source_words)
    ]
    return sorted(added)


def facts_survive(text: str, source: str, facts: Sequence[Fact]) -> bool:
    """Whether `text` says all that `source` says of these facts, adds nothing to it, and is not broken off."""
    return text.endswith(".") and not lost_facts(text, source, facts) and not added_words(text, source)


_WITHIN = r"(?:[^.]|\.\d)*"
"""Text within one sentence; the point of a number does not end it."""
_FACT_WORDS = frozenset(COLOURS) | _vocabulary(
    "left right top bottom middle up down toward towards away slowly quickly fast slow moderate small medium large "
    "hardly mostly other whole"
)
_GLUE = _vocabulary(
    "a an the it its he she his her him this and with while as is are was also then being has having "
    "of in on at to by where moves moving move stays staying stay looks looking touches touching visible "
    "appears appearing"
)


def _is_fact_word(word: str) -> bool:
    return word in _FACT_WORDS or word[0].isdigit()


def _words(text: str) -> list[str]:
    return re.findall(r"\d+(?:\.\d+)?|[a-z]+(?:['-][a-z]+)*", text.lower())


def _sentences(text: str) -> list[str]:
    """Split at full stops before a capital; "0.4 s" stays whole."""
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+(?=[A-Z])", text.strip()) if part.strip()]


def _span_pattern(start_s: float, end_s: float, clip_start_s: float) -> str:
    start, end = (re.escape(seconds(time_s, clip_start_s)) for time_s in (start_s, end_s))
    return rf"(from {start} to {end}|between {start} and {end})\b"
