"""What a training will be, from what was asked for: profile, build, base, and what its folder holds already."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from flows.train_base import absolute, base_labels, require_ours
from flows.train_profile import TrainProfile, load_train_profile
from flows.train_rank import BAD_FOLDER, DONE_FILE, BadLine, FitDone
from flows.train_record import (
    MODEL_FOLDER,
    BadCount,
    DataFile,
    KindCount,
    TrainingError,
    TrainOutcome,
    TrainRecord,
    TrainRun,
    read_record,
    require_same,
)
from infra.builds import Manifest, chosen_manifest, read_columns
from infra.lake import Lake

_EXAMPLES = 3


def plan_training(
    lake: str,
    out: str,
    build_id: str | None,
    videos: str | None,
    profile: str,
    init: str | None,
    num_steps: int | None,
) -> TrainRecord:
    """The record of the training that is asked for; with an outcome where `out` holds it finished.

    The build is the one named, else that which `out` was begun with, else the latest. Raises ProfileError, LakeError,
    WeightError, and TrainingError where there is nothing to train on or `out` holds another training.
    """
    folder, store = Path(out), Lake(lake)
    before = read_record(folder)
    chosen = load_train_profile(profile, init, num_steps)
    require_ours(chosen.base)
    manifest = chosen_manifest(store, build_id or (before.run.build_id if before else None))
    root = videos or manifest.videos_root
    run = _run_of(store, manifest, _from_anywhere(chosen))
    if not Path(root).is_dir():
        raise TrainingError(f"the videos of build {run.build_id} are not at {root}: say where they are with --videos")
    if before:
        require_same(folder, before.run, run)
    is_done = before is not None and (folder / MODEL_FOLDER / "config.json").exists()
    return TrainRecord(
        lake=lake if "://" in lake else str(Path(lake).absolute()),
        videos_root=str(Path(root).absolute()),
        run=run,
        outcome=before.outcome if before and is_done else None,
    )


def training_outcome(out: Path, run: TrainRun, last_loss: float | None) -> TrainOutcome:
    """How the ranks left the folder; raises TrainingError where they did not finish."""
    try:
        done = FitDone.model_validate_json((out / DONE_FILE).read_bytes())
    except FileNotFoundError:
        raise TrainingError("the ranks left before the last step; the same command goes on from there") from None
    return TrainOutcome(
        **done.model_dump(), label=run.profile.label(done.num_steps), last_loss=last_loss, bad=_bad_counts(out)
    )


def _run_of(store: Lake, manifest: Manifest, profile: TrainProfile) -> TrainRun:
    samples = _train_samples(store, manifest.build_id, profile)
    if not any(count.n for count in samples) and not profile.data.extra:
        kinds = ", ".join(profile.data.kinds) or "no kind: the profile takes none"
        raise TrainingError(
            f"build {manifest.build_id} has no sample of split train to train on ({kinds}), and profile "
            f"{profile.name} names no data.extra: choose another build or profile"
        )
    return TrainRun(
        build_id=manifest.build_id,
        build_source=manifest.source,
        build_profile=manifest.profile_name,
        build_engines=tuple(f"{label.agent}={label.engine}" for label in manifest.labels),
        samples=samples,
        data_files=tuple(_data_file(Path(extra.path)) for extra in profile.data.extra),
        base=base_labels(profile.base),
        profile=profile,
    )


def _train_samples(store: Lake, build_id: str, profile: TrainProfile) -> tuple[KindCount, ...]:
    counts = []
    for kind in profile.data.kinds:
        tables = read_columns(store, build_id, kind, ["split"])
        counts.append(KindCount(kind=kind, n=sum(table["split"].to_pylist().count("train") for table in tables)))
    return tuple(counts)


def _from_anywhere(profile: TrainProfile) -> TrainProfile:
    """The profile with its paths absolute: ranks run in folders of their own. Raises TrainingError for a lost file."""
    for extra in profile.data.extra:
        if not Path(extra.path).is_file():
            raise TrainingError(f"data.extra names {extra.path}, which is no file; paths count from here")
    extras = tuple(
        extra.model_copy(update={"path": str(Path(extra.path).absolute()), "root": str(Path(extra.root).absolute())})
        for extra in profile.data.extra
    )
    data = profile.data.model_copy(update={"extra": extras})
    return profile.model_copy(update={"base": absolute(profile.base), "data": data})


def _data_file(path: Path) -> DataFile:
    stat = path.stat()
    changed_at = datetime.fromtimestamp(stat.st_mtime, UTC).isoformat()
    return DataFile(path=str(path), size_bytes=stat.st_size, changed_at=changed_at)


def _bad_counts(out: Path) -> tuple[BadCount, ...]:
    """By reason, most frequent first; a sample that was drawn again counts once, a line cut by a kill not at all."""
    found: dict[str, dict[tuple[str, str], str]] = defaultdict(dict)
    for path in sorted((out / BAD_FOLDER).glob("rank-*.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                bad = BadLine.model_validate_json(line)
            except ValidationError:
                continue
            found[bad.reason].setdefault((bad.source, bad.item_id), f"{bad.source}, {bad.item_id}: {bad.said}")
    ranked = Counter({reason: len(items) for reason, items in found.items()}).most_common()
    return tuple(BadCount(reason=reason, n=n, examples=_some(list(found[reason].values()))) for reason, n in ranked)


def _some(lines: Sequence[str]) -> tuple[str, ...]:
    return tuple(lines[:_EXAMPLES])
