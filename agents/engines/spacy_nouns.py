"""spaCy's small English pipeline: captions to parsed documents, with verbs that it took for nouns put right.

The small pipeline reads "A cyclist moves to the left" as one noun chunk "A cyclist moves". Such a token shows by form
and place (a noun stands before it, and its own form is of a verb), so the caption is parsed once more with "went" in
its place, which never reads as a noun, and the arcs found so are put on the words of the caption. So it goes with "the
rickshaw turning left", of which it makes one noun "turning"; there the noun before has a stand-in too, as the pipeline
takes rare ones for adjectives. A place between noun and verb ("A cyclist on the left moves") is left out of the parse
and put back (`place_phrases`).
"""

from collections.abc import Collection, Sequence
from typing import Any

from agents.engines.place_phrases import holder_of, kept_tokens, place_phrases, put_back
from agents.vocabulary import ADVERB_DIRECTIONS, ING_FORMS, NOUN_LIKE_VERBS, SINGULAR_ARTICLES
from infra.weights import weight_label, weight_path

_STAND_IN = "went"
_ING_STAND_IN = "wearing"
_NOUN_STAND_IN = "dog"
_OPEN_TAGS = ("JJ", "RB", "VB", "VBP")
_OPEN_POS = ("ADJ", "ADV", "VERB")
_FINITE = ("VBZ", "VBP", "VB", "VBD")
_PLURAL = ("NNS", "NNPS")
_NOUNS = ("NOUN", "PROPN")
_MODIFIERS = ("amod", "compound", "nmod", "npadvmod", "advmod")
_JOINTS = ("and", "then", ",")
_ROUNDS = 3
"""Parses of one caption at most: putting one verb right shows or hides another."""


class SpacyNouns:
    """Parser: tokens with tags, lemmas, dependency arcs and noun chunks, as a spaCy `Doc`."""

    name = "spacy-chunks"

    def __init__(self) -> None:
        self._pipeline: Any = None
        self._verbs: frozenset[str] = frozenset()

    def weights(self) -> tuple[str, ...]:
        """The one pipeline folder."""
        return (weight_label("spacy-en-sm"),)

    def setup(self) -> None:
        """Load the pipeline without its entity recogniser, which nobody asks."""
        import spacy

        self._pipeline = spacy.load(weight_path("spacy-en-sm"), exclude=["ner"])
        self._verbs = frozenset(self._pipeline.get_pipe("lemmatizer").lookups.get_table("lemma_index")["verb"])

    def parse(self, text: str) -> Any:
        """The `spacy.tokens.Doc` of one caption, its text unchanged."""
        doc = self._pipeline.make_doc(text)
        phrases = place_phrases([token.lower_ for token in doc])
        while phrases:
            kept = kept_tokens(phrases, len(doc))
            ends = {phrase.end for phrase in phrases}
            read = self._mended(self._only(doc, kept), {place for place, i in enumerate(kept) if i in ends})
            plain = [phrase for phrase in phrases if holder_of(phrase, kept, read) is not None]
            if plain == phrases:
                return put_back(doc, phrases, kept, read)
            phrases = plain
        return self._mended(doc)

    def _only(self, doc: Any, kept: Sequence[int]) -> Any:
        """The unparsed words of `doc` at `kept`."""
        from spacy.tokens import Doc

        return Doc(doc.vocab, [doc[i].text for i in kept], [bool(doc[i].whitespace_) for i in kept])

    def _mended(self, unparsed: Any, behind_places: Collection[int] = ()) -> Any:
        """Words parsed, with verbs taken for nouns put right; before those at `behind_places` a place was left out."""
        doc = self._pipeline(unparsed)
        verbs: set[int] = set()
        for _ in range(_ROUNDS - 1):
            found = {token.i for token in doc if self._is_verb(token)}
            found |= {i for i in behind_places if self._is_verb_behind_place(doc[i])}
            found -= verbs
            if not found:
                break
            verbs |= found
            doc = self._read_as_verbs(doc, verbs)
        return doc

    def _is_verb(self, token: Any) -> bool:
        """Whether the parse makes a noun, or the head of a noun chunk, of what is the verb of the noun before it."""
        before = token.nbor(-1) if token.i else None
        if before is None:
            return False
        if token.lower_ in ING_FORMS:
            return self._is_ing_verb(token, before)
        if token.tag_ in _FINITE:
            return before.head.i == token.i and before.pos_ in _NOUNS and before.dep_ in ("amod", "compound", "nmod")
        if token.pos_ not in _NOUNS:
            return False
        if any(child.dep_ == "nsubj" for child in token.children):
            return self._base(token) is not None or token.lower_ in self._verbs
        base = self._base(token)
        if base is None:
            return False
        if before.pos_ in _NOUNS:
            return base in NOUN_LIKE_VERBS or _has_singular_article(before)
        if _is_noun_next(token) or token.tag_ not in _PLURAL:
            return False
        joined = before.lower_ in _JOINTS and any(t.tag_ == "VBZ" for t in token.sent if t.i < token.i)
        return (joined and base in NOUN_LIKE_VERBS) or (before.pos_ == "ADJ" and _has_singular_article(before))

    def _is_ing_verb(self, token: Any, before: Any) -> bool:
        """Whether "turning" is read as no verb of the noun before it, as in "the rickshaw turning left"."""
        if not self._is_noun_form(before) or _is_modifier(token) or any(c.dep_ == "aux" for c in token.children):
            return False
        if token.head.i == before.i:
            return before.pos_ not in _NOUNS or token.dep_ == "xcomp" or (token.dep_ == "acl" and token.pos_ in _NOUNS)
        is_part = before.head.i == token.i and before.dep_ in _MODIFIERS
        return _is_shown(token) and (is_part or token.pos_ in _NOUNS or before.pos_ not in _NOUNS)

    def _is_noun_form(self, token: Any) -> bool:
        """Whether a word is read as a noun, or could only be one ("rickshaw", read as an adjective)."""
        if token.pos_ in _NOUNS:
            return True
        if token.tag_ not in _OPEN_TAGS or token.pos_ not in _OPEN_POS or token.lower_ in ING_FORMS:
            return False
        forms = self._pipeline.get_pipe("lemmatizer").lookups.get_table("lemma_index")
        return token.lower_ in forms["noun"] and token.lower_ not in forms[token.pos_.lower()]

    def _is_verb_behind_place(self, token: Any) -> bool:
        """Whether a word behind "the man on the left" or "a cat and a dog on the left" has the form that a verb has."""
        if not token.i or token.pos_ not in _NOUNS or _is_noun_next(token) or _is_verb_next(token):
            return False
        if token.dep_ == "conj" and token.lower_ in NOUN_LIKE_VERBS:
            return True
        return token.nbor(-1).tag_ in ("NN", "NNP") and self._base(token) is not None

    def _base(self, token: Any) -> str | None:
        """The verb that "moves" is a form of, or "move" after a plural; None for other words."""
        word, verbs = token.lower_, self._verbs
        if token.nbor(-1).tag_ in _PLURAL:
            return word if word in NOUN_LIKE_VERBS else None
        endings = {word.removesuffix("s"), word.removesuffix("es"), word.removesuffix("ies") + "y"} - {word, word + "y"}
        bases = sorted(endings & verbs, key=lambda base: (base not in NOUN_LIKE_VERBS, base))
        return bases[0] if bases else None

    def _read_as_verbs(self, doc: Any, verbs: set[int]) -> Any:
        """The words of `doc` with the parse that they have where the tokens at `verbs` are plain verbs."""
        from spacy.tokens import Doc

        spaces = [bool(token.whitespace_) for token in doc]
        words = [_stand_in(token, verbs) for token in doc]
        read = self._pipeline(Doc(doc.vocab, words, spaces))
        own = Doc(
            doc.vocab,
            [token.text for token in doc],
            spaces,
            tags=[token.tag_ for token in read],
            pos=[token.pos_ for token in read],
            morphs=[str(token.morph) for token in read],
            heads=[token.head.i for token in read],
            deps=[token.dep_ for token in read],
        )
        return self._pipeline.get_pipe("lemmatizer")(own)


def _stand_in(token: Any, verbs: Collection[int]) -> str:
    """What the parser reads in place of a token: a plain verb for a verb, a plain noun for the one before "turning"."""
    if token.i in verbs:
        finite = [t for t in token.sent if t.tag_ in _FINITE and t.i not in verbs and t.lower_ not in ADVERB_DIRECTIONS]
        return _ING_STAND_IN if token.lower_ in ING_FORMS and finite else _STAND_IN
    is_before_ing = token.i + 1 in verbs and token.nbor().lower_ in ING_FORMS
    return _NOUN_STAND_IN if is_before_ing and token.tag_ not in _PLURAL else str(token.text)


def _is_modifier(token: Any) -> bool:
    """Whether a word belongs to a noun behind it, as in "swimming pool"; "left" and "right" are none."""
    head = token.head
    return head.i > token.i and head.pos_ in _NOUNS and head.lower_ not in ADVERB_DIRECTIONS


def _is_shown(token: Any) -> bool:
    """Whether a word heads what a clause is about; "horse riding is fun" is about no horse."""
    while token.dep_ in ("conj", "appos"):
        token = token.head
    if token.head.lower_ in ADVERB_DIRECTIONS:
        return True
    is_one = any(child.dep_ in ("det", "nummod", "poss") for child in token.children)
    return token.dep_ in ("ROOT", "attr") or (is_one and token.dep_ in ("nsubj", "nsubjpass"))


def _is_noun_next(token: Any) -> bool:
    return token.i + 1 < len(token.doc) and token.nbor().pos_ in _NOUNS


def _is_verb_next(token: Any) -> bool:
    return token.i + 1 < len(token.doc) and token.nbor().pos_ in ("VERB", "AUX")


def _has_singular_article(noun: Any) -> bool:
    for token in reversed(noun.doc[max(0, noun.i - 5) : noun.i]):
        if token.lower_ in SINGULAR_ARTICLES:
            return True
        if token.pos_ not in ("NOUN", "PROPN", "ADJ"):
            return False
    return False
