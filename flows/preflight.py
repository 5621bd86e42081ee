"""What must hold before any work: one clear error each, before Prefect and Ray are even loaded."""

from pathlib import Path

from flows.decontaminate import check_benches
from flows.profile_config import Profile, load_profile
from flows.wiring import agent_labels, required_weights
from infra.lake import Lake
from infra.source_rows import check_source
from infra.weights import weight_path


def preflight(source: str, root: str | None, lake: str, profile: str) -> Profile:
    """The profile, if it is sound, as are the bench files that it names, the source has a row, the lake can be written
    and no weight is missing.

    Of the source only the first row is read, since the command line and the flow both ask.
    Raises ProfileError, SourceError, LakeError or WeightError, each one line that says what to do.
    """
    resolved = load_profile(profile)
    check_benches(resolved.decontamination)
    check_source(Path(source), Path(root) if root else None)
    for weight in required_weights(agent_labels(resolved)):
        weight_path(weight)
    Lake(lake).check_writable()
    return resolved
