"""Settings of this machine, read from environment variables that start with VIDEOREFER_."""

from pathlib import Path

import platformdirs
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """What a machine decides, as against a profile, which decides what a build computes.

    `cache_dir` (VIDEOREFER_CACHE) holds fetched weights and sample clips; without it, the user's cache folder.
    `offline` (VIDEOREFER_OFFLINE) forbids every fetch. `vllm_python` (VIDEOREFER_VLLM_PYTHON) is the interpreter of the
    environment that vLLM is installed in; it counts from where the command is run. Set but empty variables count as
    unset. Raises pydantic's ValidationError, a ValueError, for a value of the wrong kind.
    """

    model_config = SettingsConfigDict(env_prefix="VIDEOREFER_", env_ignore_empty=True, frozen=True)

    cache_dir: Path = Field(
        default_factory=lambda: platformdirs.user_cache_path("videorefer"), validation_alias="VIDEOREFER_CACHE"
    )
    offline: bool = False
    vllm_python: Path = Path(".venv-vllm/bin/python")


def settings() -> Settings:
    """The settings as the environment has them now, `~` in paths resolved."""
    found = Settings()
    return found.model_copy(update={"cache_dir": found.cache_dir.expanduser().absolute()})
