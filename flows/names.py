"""The guard of our six top-level names: another distribution that ships one of them would shadow or break ours."""

from importlib.metadata import packages_distributions

PACKAGES = ("agents", "benchmark", "flows", "infra", "model", "schemas")
DISTRIBUTION = "videorefer"


def check_names() -> str | None:
    """One line that names the rival distribution and what to do, or None where all six names are ours."""
    owners = packages_distributions()
    rivals = {name: sorted(set(owners.get(name, [])) - {DISTRIBUTION}) for name in PACKAGES}
    for name, others in rivals.items():
        if others:
            return (
                f"the import package {name!r} is also installed by {', '.join(others)}; "
                f"install {DISTRIBUTION} in an environment of its own"
            )
    return None
