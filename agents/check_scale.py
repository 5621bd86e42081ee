"""The scale of the reviewer's checks: scores from 0 to 1, and from where on they tell something."""

from schemas.verdict import Check, Outcome

DISAGREES_BELOW = 0.4
AGREES_FROM = 0.6
"""In the band between, measurements of real objects waver, so that it tells nothing."""


def scored(name: str, score: float, detail: str) -> Check:
    """A check with the outcome that its score stands for."""
    score = round(min(1.0, max(0.0, score)), 4)
    outcome: Outcome = "cannot_tell"
    if score < DISAGREES_BELOW:
        outcome = "disagrees"
    elif score >= AGREES_FROM:
        outcome = "agrees"
    return Check(name=name, outcome=outcome, score=score, detail=detail)


def cannot_tell(name: str, detail: str) -> Check:
    """A check that had nothing to go by."""
    return Check(name=name, outcome="cannot_tell", score=0.5, detail=detail)
