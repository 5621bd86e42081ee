"""`videorefer up`, `down` and `status`: the server, Ray and the worker of this machine."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from flows.cli_common import JsonOption, one_line_errors, print_json
from flows.local_ray import DASHBOARD_PORT, METRICS_PORT, running_ray, start_local_ray, stop_local_ray
from flows.result import BuildResult
from flows.run_build import end_lost_builds
from flows.server import DATABASE, quieten_prefect, running_server, start_server, stop_server
from flows.started import Ray, Server, Worker
from flows.worker import running_worker, start_worker, stop_worker
from infra.builds import latest_build, list_builds
from infra.lake import Lake

NOT_RUNNING = "not running (videorefer up)"

PortOption = Annotated[
    int, typer.Option("--port", min=1, max=65535, help="Where the Prefect server listens, on loopback.")
]
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database",
        envvar=DATABASE,
        show_envvar=True,
        help="Where the server keeps its runs, as postgresql+asyncpg://user:password@host/name; a file if not given.",
    ),
]
NoRayOption = Annotated[
    bool,
    typer.Option("--no-ray", help="Start no Ray, which holds 1 GB; each run that has work then starts a small one."),
]
DashboardPortOption = Annotated[
    int, typer.Option("--ray-dashboard-port", min=1, max=65535, help="Where Ray's dashboard listens, on loopback.")
]
MetricsPortOption = Annotated[
    int, typer.Option("--ray-metrics-port", min=1, max=65535, help="Where Prometheus reads what Ray measures.")
]


def up(
    port: PortOption = 4200,
    database: DatabaseOption = None,
    no_ray: NoRayOption = False,
    ray_dashboard_port: DashboardPortOption = DASHBOARD_PORT,
    ray_metrics_port: MetricsPortOption = METRICS_PORT,
) -> None:
    """Start the Prefect server with its page, Ray with its dashboard, and a worker for deployed runs.

    Runs of the command line report to the server too, and use this Ray. Pages and dashboard are on loopback. Run it
    again after a crash or a restart of the machine: it starts what does not run, ends the runs that were lost, and
    keeps the rest.
    """
    with one_line_errors():
        server, new = start_server(port, database)
        typer.echo(f"Prefect {_is_up(new)}: {server.url}/runs (process {server.pid})")
        if not no_ray:
            ray, new_ray = start_local_ray(ray_dashboard_port, ray_metrics_port)
            typer.echo(
                f"Ray {_is_up(new_ray)}: {ray.address}, dashboard {ray.dashboard_url} (process {ray.pid}); it asks for "
                "the token in ~/.ray/auth_token"
            )
        quieten_prefect()
        worker, new_worker = start_worker(server)
        end_lost_builds(server)
        typer.echo(f"its worker {_is_up(new_worker)} (process {worker.pid})")


def _is_up(new: bool) -> str:
    return "is up" if new else "was up already"


def down() -> None:
    """Stop what `up` started, and with Ray the work of runs that use it; the same commands go on from there."""
    with one_line_errors():
        quieten_prefect()
        worker = stop_worker()  # first, so that its run can still use Ray, and tell the server how it ended
        ray = stop_local_ray()
        server = stop_server()
        if server:
            typer.echo(f"stopped {server.url}")
        if ray:
            typer.echo(f"stopped Ray at {ray.address}")
        if worker:
            typer.echo("stopped its worker")
        if not (server or ray or worker):
            typer.echo("nothing was running")


def status(
    lake: Annotated[str | None, typer.Option("--lake", help="Also list the builds of this lake.")] = None,
    as_json: JsonOption = False,
) -> None:
    """What runs here (the Prefect server, Ray and the worker), and which builds a lake holds."""
    with one_line_errors():
        if server := running_server():
            end_lost_builds(server)
        ray, worker = running_ray(), running_worker()
        builds = () if lake is None else list_builds(Lake(lake))
        latest = None if lake is None else latest_build(Lake(lake))
        if as_json:
            print_json(
                {
                    "server": None if server is None else server.url,
                    "server_pid": None if server is None else server.pid,
                    "ray": None if ray is None else ray.address,
                    "ray_dashboard": None if ray is None else ray.dashboard_url,
                    "ray_pid": None if ray is None else ray.pid,
                    "worker_pid": None if worker is None else worker.pid,
                    "latest": latest,
                    "builds": [manifest.model_dump(mode="json") for manifest in builds],
                }
            )
            return
        console = Console()
        _print_processes(console, server, ray, worker)
        if lake is None:
            return
        table = Table("build", "created", "profile", "samples", "quarantined", "", box=None, header_style="dim")
        for manifest in builds:
            mark = "latest" if manifest.build_id == latest else ""
            result = BuildResult.of(manifest, Lake(lake), is_new=False)
            table.add_row(
                manifest.build_id,
                manifest.created_at,
                manifest.profile_name,
                str(result.num_samples),
                str(result.num_quarantined),
                mark,
            )
        console.print(table if builds else f"No build in {lake} yet: videorefer build --source ... --lake {lake}")


def _print_processes(console: Console, server: Server | None, ray: Ray | None, worker: Worker | None) -> None:
    lines = {
        "Prefect server": f"{server.url}, process {server.pid}" if server else NOT_RUNNING,
        "Ray": f"{ray.address}, dashboard {ray.dashboard_url}, process {ray.pid}" if ray else NOT_RUNNING,
        "Prefect worker": f"asks {worker.api_url}, process {worker.pid}" if worker else NOT_RUNNING,
    }
    for name, at in lines.items():
        console.print(f"{name}: {at}", highlight=False, soft_wrap=True)
