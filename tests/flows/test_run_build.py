"""What a build was asked for is kept so that it can be asked for again, from any folder."""

from pathlib import Path

import pytest

from flows.run_build import command_of


def test_paths_are_kept_whole_and_the_names_of_shipped_profiles_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = command_of(Path("rows.csv"), Path("videos"), "my.toml", 3, "ray://head:10001")
    assert asked.line("/lake") == (
        f"videorefer build --source {tmp_path}/rows.csv --lake /lake --root {tmp_path}/videos "
        f"--profile {tmp_path}/my.toml --limit 3 --ray ray://head:10001"
    )
    asked = command_of(tmp_path / "clips", None, "painted", None, None)
    assert asked.line("/lake") == f"videorefer build --source {tmp_path}/clips --lake /lake --profile painted"
