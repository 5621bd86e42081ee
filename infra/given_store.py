"""Where masks that came with a source rest in a lake; apart from their reading, which needs no lake."""

from infra.lake import AgentStore, Lake
from schemas.given import GivenMasks
from schemas.label import AgentLabel


def given_store(lake: Lake) -> AgentStore[GivenMasks]:
    """Given masks, each under the id of its content."""
    label = AgentLabel(agent="given", engine="source", weights=(), config_json="{}", prompt_hash="", revision=1)
    return lake.agent_store(label, GivenMasks)
