"""Tags by which people find runs in Prefect's UI: `profile=embedded`, `lake=lake`, `build=4f2a...`."""

from pathlib import PurePosixPath
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from flows.artifacts import decoration


def tag_run(**named: str) -> None:
    """Add the tag `name=value` for each name to the flow run that is under way; its other tags stay.

    Its task runs get none: Prefect would ask the server about limits of each tag, for each of them. A server that
    cannot take the tags costs the tags, never the run.
    """
    with decoration(), get_client(sync_client=True) as client:
        flow_run_id = UUID(str(flow_run.id))
        held = client.read_flow_run(flow_run_id).tags
        added = [tag for name, value in named.items() if (tag := f"{name}={value}") not in held]
        client.update_flow_run(flow_run_id, tags=[*held, *added])


def last_name(place: str) -> str:
    """What a folder, prefix or profile is called without the way to it: `lake` of `s3://bucket/lake/`, `tiny` of
    `profiles/tiny.toml`.
    """
    return PurePosixPath(place).name.removesuffix(".toml")
