"""Training profiles: those of the paper's stages hold the paper's table, and mistakes are named."""

from pathlib import Path

import pytest

from flows.profile_config import shipped_profiles
from flows.profile_files import ProfileError
from flows.train_profile import FolderBase, load_train_profile, shipped_train_profiles

EVERYTHING_BUT_THE_TOWER = {"connector", "object_encoder", "language_model"}


@pytest.mark.parametrize(
    ("name", "parts", "learning_rate", "batch"),
    [  # VideoRefer, appendix B.1 and figure 8
        ("stage1", {"connector"}, 1e-3, 256),
        ("stage2", {"object_encoder"}, 1e-3, 256),
        ("stage2.5", EVERYTHING_BUT_THE_TOWER, 2e-5, 128),
        ("stage3", EVERYTHING_BUT_THE_TOWER, 2e-5, 128),
    ],
)
def test_stages_hold_the_table_of_the_paper(name: str, parts: set[str], learning_rate: float, batch: int) -> None:
    settings = load_train_profile(name, init="base").settings
    assert (set(settings.parts), settings.learning_rate, settings.global_batch_size) == (parts, learning_rate, batch)
    shared = (settings.warmup_share, settings.weight_decay, settings.precision, settings.epochs)
    assert shared == (0.03, 0.0, "bf16", 1)


def test_single_and_multi_frame_are_mixed_as_in_the_paper() -> None:
    shares = {n: load_train_profile(n, init="base").data.single_frame_share for n in ("stage2", "stage2.5")}
    assert shares == {"stage2": 1.0, "stage2.5": 0.5}


@pytest.mark.parametrize("name", shipped_train_profiles())
def test_every_shipped_profile_loads_under_its_own_name_and_its_batch_divides(name: str) -> None:
    profile = load_train_profile(name, init="base")
    assert profile.name == name
    assert profile.settings.accumulation(profile.workers.num) >= 1


def test_only_the_smoke_training_is_labelled_so() -> None:
    labels = {name: load_train_profile(name, init="base").label(7) for name in shipped_train_profiles()}
    assert {name for name, label in labels.items() if label == "smoke: 7 steps"} == {"smoke"}
    assert set(labels.values()) == {"smoke: 7 steps", "7 steps"}
    assert load_train_profile("smoke").label(0) == "untrained: 0 steps"


def test_profiles_of_trainings_are_none_of_builds() -> None:
    assert not {"stage1", "stage2", "smoke"} & set(shipped_profiles())


def test_base_and_length_may_be_given_instead() -> None:
    profile = load_train_profile("embedded", init="mine", num_steps=5)
    assert profile.base == FolderBase(kind="model", path="mine")
    assert (profile.settings.num_steps, profile.settings.epochs) == (5, None)


def test_a_whole_model_given_instead_keeps_how_it_is_read(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "flows" / "train_profiles" / "stage3.toml"
    path = tmp_path / "mine.toml"
    exact = 'kind = "model"\npath = "there"\npaper_exact = true'
    path.write_text(shipped.read_text().replace('kind = "init"', exact))
    assert load_train_profile(str(path), init="mine").base == FolderBase(kind="model", path="mine", paper_exact=True)
    assert load_train_profile("stage3", init="mine").base == FolderBase(kind="model", path="mine", paper_exact=False)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("num_steps", "num_step", "the nearest valid one is 'settings.num_steps'"),
        ("num = 1", "nums = 1", "the nearest valid one is 'workers.num'"),
        ('kind = "embedded"', 'kind = "embeded"', "base.kind: "),
        ("learning_rate = 1e-3", "learning_rate = 0", "settings.learning_rate: "),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    shipped = Path(__file__).parents[2] / "flows" / "train_profiles" / "smoke.toml"
    path = tmp_path / "mine.toml"
    text = shipped.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ProfileError) as raised:
        load_train_profile(str(path))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
