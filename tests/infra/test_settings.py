from pathlib import Path

import platformdirs
import pytest
from pydantic import ValidationError

from infra.settings import Settings, settings


def test_cache_is_the_users_cache_folder_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIDEOREFER_CACHE", raising=False)
    assert settings().cache_dir == platformdirs.user_cache_path("videorefer")


def test_cache_variable_decides_and_home_is_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOREFER_CACHE", "~/somewhere")
    assert settings().cache_dir == Path.home() / "somewhere"


def test_relative_cache_becomes_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOREFER_CACHE", "somewhere")
    assert settings().cache_dir == Path.cwd() / "somewhere"


def test_empty_variables_count_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOREFER_CACHE", "")
    monkeypatch.setenv("VIDEOREFER_OFFLINE", "")
    assert settings().cache_dir == platformdirs.user_cache_path("videorefer")
    assert not settings().offline


def test_offline_is_read_as_a_truth_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOREFER_OFFLINE", "1")
    assert settings().offline
    monkeypatch.setenv("VIDEOREFER_OFFLINE", "perhaps")
    with pytest.raises(ValidationError, match="offline"):
        Settings()
