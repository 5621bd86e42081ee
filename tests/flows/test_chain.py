"""Keys name how an output comes about, so that what is stale is known without reading a single output."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from flows.chain import Chain
from flows.profile_config import ROLES
from infra.lake import Lake
from schemas.caption import MentionText, MentionTextSet
from schemas.jobs import AnnotatorJob, RefinerJob, ReviewerJob, SegmenterJob, TextRefinerJob, TextReviewerJob

KEYS_IN_ANOTHER_PROCESS = """
import json, sys
from flows.chain import Chain
from infra.lake import Lake
from schemas.caption import MentionText, MentionTextSet
from schemas.clip import Clip
from schemas.label import AgentLabel
clip, labels = json.load(sys.stdin)
labels = {role: AgentLabel.model_validate(label) for role, label in labels.items()}
print(json.dumps(Chain(Lake("nowhere"), labels, "tracks").keys(Clip.model_validate(clip))))
"""


def test_every_key_changes_with_the_caption(tmp_path: Path, by_hand: Any) -> None:
    chain = Chain(Lake(tmp_path), by_hand.labels(), "tracks")
    # the id held fixed, so that the caption alone makes the difference
    old, new = (
        chain.keys(by_hand.clip()),
        Chain(Lake(tmp_path), by_hand.labels(), "tracks").keys(by_hand.clip(caption="A cow.")),
    )
    assert all(old[role] != new[role] for role in ROLES)


def test_a_new_prompt_changes_the_key_of_its_agent_and_of_those_after_it_only(tmp_path: Path, by_hand: Any) -> None:
    def changed_by(role: str) -> list[str]:
        old, new = (
            Chain(Lake(tmp_path), labels, "tracks").keys(by_hand.clip())
            for labels in (by_hand.labels(), by_hand.labels(**{role: "a new prompt"}))
        )
        return [role for role in ROLES if old[role] != new[role]]

    assert changed_by("refiner") == ["refiner"]
    assert changed_by("annotator") == ["annotator", "reviewer", "refiner"]
    assert changed_by("analyzer") == list(ROLES)


def test_keys_are_the_same_in_every_process(tmp_path: Path, by_hand: Any) -> None:
    labels = by_hand.labels()
    given = [by_hand.clip().model_dump(), {role: label.model_dump() for role, label in labels.items()}]
    done = subprocess.run(
        [sys.executable, "-c", KEYS_IN_ANOTHER_PROCESS],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == Chain(Lake(tmp_path), labels, "tracks").keys(by_hand.clip())


def test_a_clip_is_stale_until_its_output_is_in_the_lake(tmp_path: Path, by_hand: Any) -> None:
    chain = Chain(Lake(tmp_path), by_hand.labels(), "tracks")
    one, two = by_hand.clip("c1"), by_hand.clip("c2")
    assert chain.stale("analyzer", [one, two]) == [one, two]
    by_hand.fill(chain, one, {"analyzer": by_hand.mentions(one)})
    assert chain.stale("analyzer", [one, two]) == [two]
    assert chain.stale("segmenter", [one, two]) == [one, two]
    assert Chain(Lake(tmp_path), by_hand.labels(), "tracks").stale("analyzer", [one, two]) == [two]


def test_outputs_come_back_by_clip_and_those_not_there_are_left_out(tmp_path: Path, by_hand: Any) -> None:
    chain = Chain(Lake(tmp_path), by_hand.labels(), "tracks")
    one, two = by_hand.clip("c1"), by_hand.clip("c2")
    by_hand.fill(chain, one)
    for role, output in by_hand.outputs(one).items():
        assert chain.outputs(role, [two, one]) == {"c1": output}


def test_an_agent_is_handed_what_all_before_it_made(tmp_path: Path, by_hand: Any) -> None:
    chain = Chain(Lake(tmp_path), by_hand.labels(), "tracks")
    one, two = by_hand.clip("c1"), by_hand.clip("c2")
    for clip in (one, two):
        by_hand.fill(chain, clip)
    said, seen = by_hand.mentions(two), by_hand.tracks(two)
    told, judged = by_hand.captions(two), by_hand.verdicts(two)
    assert chain.jobs("analyzer", [two, one]) == [two, one]
    assert chain.jobs("segmenter", [two, one])[0] == SegmenterJob(clip=two, mentions=said)
    assert chain.jobs("annotator", [two, one])[0] == AnnotatorJob(clip=two, mentions=said, tracks=seen)
    assert chain.jobs("reviewer", [two])[0] == ReviewerJob(clip=two, mentions=said, tracks=seen, captions=told)
    assert chain.jobs("refiner", [two]) == [
        RefinerJob(clip=two, mentions=said, tracks=seen, captions=told, verdicts=judged)
    ]


def test_a_clip_without_all_upstream_outputs_gives_no_job(tmp_path: Path, by_hand: Any) -> None:
    chain = Chain(Lake(tmp_path), by_hand.labels(), "tracks")
    one, two = by_hand.clip("c1"), by_hand.clip("c2")
    by_hand.fill(chain, one)
    by_hand.fill(chain, two, {"analyzer": by_hand.mentions(two)})
    assert [job.clip.clip_id for job in chain.jobs("segmenter", [one, two])] == ["c1", "c2"]
    assert [job.clip.clip_id for job in chain.jobs("annotator", [one, two])] == ["c1"]


def test_an_annotator_that_needs_no_tracks_stands_beside_the_segmenter(tmp_path: Path, by_hand: Any) -> None:
    beside, after = (Chain(Lake(tmp_path), by_hand.labels(), needs) for needs in ("mentions", "tracks"))
    assert [beside.waits_for(role) for role in ROLES] == [
        (),
        ("analyzer",),
        ("analyzer",),
        ("segmenter", "annotator"),
        ("reviewer",),
    ]
    assert [after.waits_for(role) for role in ROLES] == [(), *((role,) for role in ROLES[:-1])]


def test_its_key_and_its_job_know_nothing_of_tracks(tmp_path: Path, by_hand: Any) -> None:
    clip = by_hand.clip()
    old, new = (
        Chain(Lake(tmp_path), by_hand.labels(segmenter=prompt), "mentions").keys(clip) for prompt in ("", "new")
    )
    assert [role for role in ROLES if old[role] != new[role]] == ["segmenter", "reviewer", "refiner"]
    chain = Chain(Lake(tmp_path), by_hand.labels(), "mentions")
    by_hand.fill(chain, clip, {"analyzer": by_hand.mentions(clip)})
    assert chain.jobs("annotator", [clip]) == [SegmenterJob(clip=clip, mentions=by_hand.mentions(clip))]
    assert chain.jobs("reviewer", [clip]) == []


def test_its_texts_reach_the_agents_after_it_as_texts_on_mentions(tmp_path: Path, by_hand: Any) -> None:
    clip = by_hand.clip()
    chain = Chain(Lake(tmp_path), by_hand.labels(), "mentions")
    cat = MentionText(mention_id="c1-cat", noun="cat", appearance="It is red.", motion="It runs.", moving=True)
    dog = by_hand.drop(clip, "c1-dog", "annotator", "static_subject", "dog")
    texts = MentionTextSet(clip_id=clip.clip_id, texts=(cat,), rejected=(dog,))
    by_hand.fill(chain, clip, by_hand.outputs(clip) | {"annotator": texts})
    said, seen, judged = by_hand.mentions(clip), by_hand.tracks(clip), by_hand.verdicts(clip)
    again = Chain(Lake(tmp_path), by_hand.labels(), "mentions")
    assert again.jobs("reviewer", [clip]) == [TextReviewerJob(clip=clip, mentions=said, tracks=seen, texts=texts)]
    assert again.jobs("refiner", [clip]) == [
        TextRefinerJob(clip=clip, mentions=said, tracks=seen, texts=texts, verdicts=judged)
    ]
