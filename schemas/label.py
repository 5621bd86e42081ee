"""Label: what an agent is made of, as it enters keys and provenance."""

from schemas.record import Record, content_id


class AgentLabel(Record):
    """An agent's identity: change any field and its outputs are computed again.

    `engine` is the name people read, `weights` one `name@sha256-prefix` per file or model folder, and per chat server
    what is said of it, `config_json` the agent's resolved configuration, `prompt_hash` the SHA-256 of its prompt files
    (empty without), `revision` the version of its code's output.
    """

    agent: str
    engine: str
    weights: tuple[str, ...]
    config_json: str
    prompt_hash: str
    revision: int

    @property
    def config_hash(self) -> str:
        """16 hex digits that name the folder of this agent's outputs in the lake."""
        return content_id(self)[:16]
