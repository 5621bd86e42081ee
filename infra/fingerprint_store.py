"""Where the fingerprints of clips rest in a lake; apart from their making, which needs no lake."""

import json

from infra.fingerprint import GRID, MARGIN, MIN_CONTRAST, NUM_FRAMES, Fingerprint
from infra.lake import AgentStore, Lake
from infra.scenes import LONG_SIDE_PX
from schemas.label import AgentLabel


def fingerprint_store(lake: Lake) -> AgentStore[Fingerprint]:
    """Fingerprints, each under `infra.fingerprint.fingerprint_key`."""
    config = {
        "num_frames": NUM_FRAMES,
        "grid": GRID,
        "margin": MARGIN,
        "min_contrast": MIN_CONTRAST,
        "long_side_px": LONG_SIDE_PX,
    }
    label = AgentLabel(
        agent="fingerprint",
        engine="difference-hash",
        weights=(),
        config_json=json.dumps(config, sort_keys=True),
        prompt_hash="",
        revision=1,
    )
    return lake.agent_store(label, Fingerprint)
