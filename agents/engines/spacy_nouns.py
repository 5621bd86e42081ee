"""spaCy's small English pipeline: captions to parsed documents."""

from typing import Any

from infra.weights import weight_label, weight_path


class SpacyNouns:
    """Parser: tokens with tags, lemmas, dependency arcs and noun chunks, as a spaCy `Doc`."""

    name = "spacy-chunks"

    def __init__(self) -> None:
        self._pipeline: Any = None

    def weights(self) -> tuple[str, ...]:
        """The one pipeline folder."""
        return (weight_label("spacy-en-sm"),)

    def setup(self) -> None:
        """Load the pipeline without its entity recogniser, which nobody asks."""
        import spacy

        self._pipeline = spacy.load(weight_path("spacy-en-sm"), exclude=["ner"])

    def parse(self, text: str) -> Any:
        """The `spacy.tokens.Doc` of one caption."""
        return self._pipeline(text)
