"""How good the embedded engines are where the truth is known: `make quality`. The README quotes these figures."""

import json

import numpy as np
import pytest

from benchmark.masks import track_score
from flows.profile_config import load_profile
from flows.wiring import UNKNOWN, Site, make_agent
from infra.sources import ClipConfig, SourceRow, clips_of
from infra.synthetic import write_clips
from infra.truth import read_truth
from schemas.jobs import AnnotatorJob, ReviewerJob, SegmenterJob

NUM_CLIPS = 20
SEED = 20
SAME_OBJECT_J = 0.5


def is_said_of(mention, truth):
    """Whether the caption's words for a mention fit an object of the truth, and not just its class."""
    said = mention.said
    return (
        mention.detector_class == truth.masks.detector_class
        and (not said.colours or truth.colour in said.colours)
        and (not said.directions or truth.direction in said.directions)
    )


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """(clip, truth, mentions, tracks, captions, verdicts) of each easy clip, through the embedded agents."""
    folder = tmp_path_factory.mktemp("quality")
    rows = write_clips(folder / "clips", NUM_CLIPS, SEED)
    profile = load_profile("embedded")
    site = Site(videos_root=str(folder), frames_dir=str(folder / "frames"), identity=UNKNOWN)
    agents = {role: make_agent(role, profile, site) for role in ("analyzer", "segmenter", "annotator", "reviewer")}
    for agent in agents.values():
        agent.setup()
    found = []
    for row in rows:
        source_row = SourceRow(**{("source_id" if key == "id" else key): value for key, value in row.items()})
        (clip,) = clips_of(source_row, folder, ClipConfig()).clips
        (mentions,) = agents["analyzer"].process([clip])
        (tracks,) = agents["segmenter"].process([SegmenterJob(clip=clip, mentions=mentions)])
        (captions,) = agents["annotator"].process([AnnotatorJob(clip=clip, mentions=mentions, tracks=tracks)])
        job = ReviewerJob(clip=clip, mentions=mentions, tracks=tracks, captions=captions)
        (verdicts,) = agents["reviewer"].process([job])
        found.append((clip, read_truth(folder / clip.video), mentions, tracks, captions, verdicts))
    return found


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.timeout(1800)
def test_embedded_engines_reach_their_goals_on_easy_synthetic_clips(outcomes):
    j, f, right_motion, lines = [], [], [], []
    objects = recalled = accepted = wrong = kept_right = right = kept_wrong = 0
    for clip, truth, mentions, tracks, captions, verdicts in outcomes:
        by_mention = {mention.mention_id: mention for mention in mentions.mentions}
        motion = {caption.track_id: caption.motion_facts for caption in captions.captions}
        kept = {verdict.track_id: verdict.keep for verdict in verdicts.verdicts}
        objects += len(truth.objects)
        recalled_here = set()
        for track in tracks.tracks:
            accepted += 1
            scores = [(track_score(track.masks, item.masks), item) for item in truth.objects]
            score, item = max(scores, key=lambda pair: pair[0].j)
            if score.j < SAME_OBJECT_J or not is_said_of(by_mention[track.mention_id], item):
                wrong += 1
                kept_wrong += kept[track.track_id]
                lines.append(f"{clip.source_id}: {track.noun}: wrong pick, best J {score.j:.2f}")
                continue
            right += 1
            kept_right += kept[track.track_id]
            recalled_here.add(item.object_id)
            j.append(score.j)
            f.append(score.f)
            right_motion.append(motion[track.track_id].direction == item.direction)
            if not right_motion[-1] or not kept[track.track_id]:
                lines.append(
                    f"{clip.source_id}: {track.noun}: true direction {item.direction}, measured "
                    f"{motion[track.track_id].direction}, kept {kept[track.track_id]}"
                )
        recalled += len(recalled_here)
        lines += [
            f"{clip.source_id}: {e.noun}: {e.stage} {e.reason}: {e.evidence}"
            for output in (mentions, tracks)
            for e in output.rejected
            if e.reason != "scenery"
        ]
    figures = {
        "clips": len(outcomes),
        "objects": objects,
        "J": round(float(np.mean(j)), 3),
        "F": round(float(np.mean(f)), 3),
        "J&F": round(float(np.mean(j + f)), 3),
        "mention recall": round(recalled / objects, 3),
        "wrong picks of accepted": f"{wrong}/{accepted}",
        "true motion facts": round(float(np.mean(right_motion)), 3),
        "reviewer keeps of right": f"{kept_right}/{right}",
        "reviewer keeps of wrong": f"{kept_wrong}/{wrong}",
    }
    print("\n" + "\n".join(lines))
    print(json.dumps(figures))
    assert figures["J&F"] >= 0.70
    assert figures["mention recall"] >= 0.8
    assert figures["true motion facts"] >= 0.9
