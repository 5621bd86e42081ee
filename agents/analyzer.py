"""Analyzer: the nouns of a caption, what the caption says of each, and the detector class that stands for it.

The paper has Qwen2-Instruct-7B list `Subject:[...], Others:[...]` (arXiv 2501.00599, App. C). Here a dependency parse
gives the noun chunks and a sentence embedding the class, so the same caption gives the same mentions everywhere, and
every noun chunk ends as a mention or as a rejected entry with its reason.
"""

import json
from collections.abc import Sequence
from typing import Any, Protocol

from pydantic import Field

from agents.base import Engine, TextEmbedder
from agents.expression import UNNAMED, meant, name_of, part_of
from agents.nouns import NounMap, NounMatch
from agents.plain_text import plain_text
from agents.said import Nominal, is_denied, lemma_of, nominals, number_of, role_of, said_of
from schemas.clip import Clip
from schemas.label import AgentLabel
from schemas.mention import Mention, MentionSet, SaidAttributes
from schemas.quarantine import QuarantineEntry, Reason
from schemas.record import Record, short_id

REVISION = 2

WHOLE_THRESHOLD = 0.85
"""Least cosine for a compound to be taken as a whole: "tennis racquet" is at 0.86, "bus stop" at 0.78 from "bus"."""

LISTED_THRESHOLD = 0.999
"""Least cosine for a noun that the parse leaves out of its chunks: only a listed word is taken there, since it may be
a verb in truth ("sleep" is near "bed")."""

SKIN_COLOURS = frozenset({"black", "white", "brown", "yellow"})
"""Said of a person these tell of no pixels ("a black man in a red coat")."""


class Parser(Engine, Protocol):
    """Captions to spaCy documents."""

    def parse(self, text: str) -> Any:
        """The `spacy.tokens.Doc` of one caption."""


class AnalyzerConfig(Record):
    """How nouns are mapped."""

    class_threshold: float = Field(default=0.6, ge=0, le=1)
    """Least cosine between a noun and the nearest known word for the noun to be taken as that word's class; 0.6 was
    chosen on 280 nouns (see `tests/agents/test_analyzer.py` for figures on others).
    """


class Analyzer:
    """Clip to mentions.

    `classes` are those of the detector that the segmenter will use: a noun outside them is rejected as
    `not_detectable`, never guessed. A clip with given masks has one mention, what its expression means; an expression
    that names nothing ("moving left") gives the mention `object`.
    """

    def __init__(
        self, config: AnalyzerConfig, parser: Parser, embedder: TextEmbedder, classes: tuple[str, ...]
    ) -> None:
        self._config, self._parser, self._embedder, self._classes = config, parser, embedder, classes
        self._nouns: NounMap | None = None

    def label(self) -> AgentLabel:
        """Parser, embedder, their weights, threshold and classes."""
        config = self._config.model_dump(mode="json") | {"classes": short_id(*self._classes)}
        return AgentLabel(
            agent="analyzer",
            engine=f"{self._parser.name}+{self._embedder.name}",
            weights=(*self._parser.weights(), *self._embedder.weights()),
            config_json=json.dumps(config, sort_keys=True),
            prompt_hash="",
            revision=REVISION,
        )

    def setup(self) -> None:
        """Load parser and embedder, and embed the known words."""
        self._parser.setup()
        self._embedder.setup()
        self._nouns = NounMap(self._embedder, self._classes)

    def process(self, jobs: Sequence[Clip]) -> list[MentionSet]:
        """The mentions of each clip's caption, in the order of the text."""
        return [self._mentions(clip) for clip in jobs]

    def close(self) -> None:
        """Forget the known words."""
        self._nouns = None

    def _mentions(self, clip: Clip) -> MentionSet:
        text, places = plain_text(clip.caption)
        doc = self._parser.parse(text)
        if clip.given_sha256 and text:
            return self._given(clip, doc, places)
        mentions: list[Mention] = []
        rejected: list[QuarantineEntry] = []
        for item in nominals(doc):
            result = self._judge(clip, doc, item, places)
            if isinstance(result, Mention):
                mentions.append(result)
            else:
                rejected.append(result)
        if not mentions and not rejected:
            evidence = f"the parser found no noun in {clip.caption[:80]!r}"
            rejected.append(rejection(clip, clip.clip_id, "", "no_mention", evidence))
        return MentionSet(clip_id=clip.clip_id, mentions=tuple(mentions), rejected=tuple(rejected))

    def _judge(self, clip: Clip, doc: Any, item: Nominal, places: Sequence[int]) -> Mention | QuarantineEntry:
        phrase = doc[item.start : item.end]
        noun, mention_id = _noun_of(item), _id_of(clip, doc, item, places)
        if item.noun.pos_ == "PRON":
            return rejection(clip, mention_id, noun, "pronoun", _names_nothing(phrase.text))
        if is_denied(item):
            return rejection(clip, mention_id, noun, "not_detectable", f"the caption says that there is no {noun}")
        match = self._match(item, noun)
        if match.kind != "class":
            reason: Reason = "scenery" if match.kind == "scenery" else "not_detectable"
            return rejection(clip, mention_id, noun, reason, self._evidence(match, self._threshold(item)))
        return Mention(
            mention_id=mention_id,
            clip_id=clip.clip_id,
            noun=noun,
            phrase=phrase.text,
            start_char=places[phrase.start_char],
            end_char=places[phrase.end_char - 1] + 1,
            role=role_of(item),
            number=number_of(item),
            detector_class=match.detector_class,
            class_similarity=match.class_similarity,
            said=_seen_only(said_of(item), match.detector_class),
        )

    def _given(self, clip: Clip, doc: Any, places: Sequence[int]) -> MentionSet:
        """One mention for the objects whose masks came with the clip; the other nouns have none."""
        items = nominals(doc)
        subjects = meant(items)
        span = doc[subjects[0].start : subjects[-1].end] if subjects else doc[:]
        noun, detector_class, similarity = self._name(subjects)
        said = _said_of_given(subjects)
        mention = Mention(
            mention_id=short_id(clip.clip_id, "given"),
            clip_id=clip.clip_id,
            noun=noun,
            phrase=span.text,
            start_char=places[span.start_char],
            end_char=places[span.end_char - 1] + 1,
            role="subject",
            number="singular" if said.count == 1 else "plural",
            detector_class=detector_class,
            class_similarity=similarity,
            said=_seen_only(said, detector_class),
        )
        others = [item for item in items if item not in subjects]
        rejected = tuple(_without_masks(clip, doc, item, places, span.text) for item in others)
        return MentionSet(clip_id=clip.clip_id, mentions=(mention,), rejected=rejected)

    def _name(self, subjects: Sequence[Nominal]) -> tuple[str, str, float]:
        """Noun, class and cosine between them, for objects that some coordinated nouns mean together.

        A noun outside the detector's classes is its own class, since no detector has to find it.
        """
        nouns = {name_of(item) for item in subjects}
        noun = nouns.pop() if len(nouns) == 1 else UNNAMED
        match = self._match(subjects[0], noun) if noun != UNNAMED else None
        if match is None or match.kind != "class":
            return noun, noun, 1.0
        return noun, match.detector_class, match.class_similarity

    def _match(self, item: Nominal, noun: str) -> NounMatch:
        """A compound decides where it is known as a whole ("traffic light"), else its head does ("city bus")."""
        assert self._nouns is not None, "setup() comes first"
        before = item.noun.nbor(-1) if item.noun.i > item.start else None
        if before is not None and before.dep_ in ("compound", "amod"):
            whole = self._nouns.match(f"{before.lower_} {noun}", WHOLE_THRESHOLD)
            if whole.kind == "class" and " " in whole.nearest_word:
                return whole
        return self._nouns.match(noun, self._threshold(item))

    def _threshold(self, item: Nominal) -> float:
        return LISTED_THRESHOLD if item.left_out else self._config.class_threshold

    def _evidence(self, match: NounMatch, threshold: float) -> str:
        return (
            f"nearest class {match.detector_class!r} at cosine {match.class_similarity:.2f}, nearest known word "
            f"{match.nearest_word!r} at {match.nearest_similarity:.2f} (least {threshold:.2f})"
        )


def _noun_of(item: Nominal) -> str:
    return lemma_of(item.noun).strip() or str(item.noun.text)


def _said_of_given(subjects: Sequence[Nominal]) -> SaidAttributes:
    """What is said of the objects meant: of several nouns only their number, which claim is whose being open."""
    if len(subjects) == 1:
        said = said_of(subjects[0])
        part = part_of(subjects[0])
        return said.model_copy(update={"count": 1 if part in ("one", "each") else None}) if part else said
    counts = [count for item in subjects if (count := said_of(item).count) is not None]
    return SaidAttributes(count=sum(counts) if counts and len(counts) == len(subjects) else None)


def _without_masks(clip: Clip, doc: Any, item: Nominal, places: Sequence[int], meant_text: str) -> QuarantineEntry:
    mention_id, noun = _id_of(clip, doc, item, places), _noun_of(item)
    if item.noun.pos_ == "PRON":
        return rejection(clip, mention_id, noun, "pronoun", _names_nothing(doc[item.start : item.end].text))
    evidence = f"the source gives masks of what {meant_text!r} means, of nothing else"
    return rejection(clip, mention_id, noun, "no_masks_given", evidence)


def _names_nothing(phrase: str) -> str:
    return f"{phrase!r} names nothing by itself"


def _id_of(clip: Clip, doc: Any, item: Nominal, places: Sequence[int]) -> str:
    return short_id(clip.clip_id, places[doc[item.start].idx], _noun_of(item))


def _seen_only(said: SaidAttributes, detector_class: str) -> SaidAttributes:
    if detector_class != "person":
        return said
    return said.model_copy(update={"colours": tuple(c for c in said.colours if c not in SKIN_COLOURS)})


def rejection(clip: Clip, subject_id: str, noun: str, reason: Reason, evidence: str) -> QuarantineEntry:
    """What an analyzer drops."""
    return QuarantineEntry.of_clip(clip, "analyzer", reason, evidence, subject_id=subject_id, noun=noun)
