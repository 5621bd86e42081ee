"""One bench run from the command line: what is refused before anything starts, its progress, and how it ends."""

from rich.console import Console

from flows.bench_plan import plan_bench
from flows.bench_record import BenchAsked, BenchResult, Heuristic
from flows.bench_work import alone
from flows.cli_common import INTERRUPTED, fail, say
from flows.run_flow import flow_on_page


def run_bench(asked: BenchAsked, as_json: bool) -> BenchResult:
    """Predict and score; what has an answer is not asked again. One that is stopped by a signal ends the process."""
    with alone(asked, plan_bench(asked)):
        pass  # refused before Prefect is loaded
    if isinstance(asked.scoring, Heuristic):
        from flows.bench_score import fetch_embedder

        fetch_embedder(say(as_json))  # where it can be told, and before anything is predicted
    console = Console(stderr=True, quiet=as_json)
    try:
        with flow_on_page(console):
            from flows.bench import bench
            from flows.bench_progress import WATCHERS, BenchTerminal

            with BenchTerminal(console) as terminal, WATCHERS.watched_by(terminal):
                result = bench(asked)
    except KeyboardInterrupt:  # Ctrl-C, or SIGTERM by way of `flows.names`
        fail("stopped; the same command asks only what has no answer yet", INTERRUPTED)
    assert isinstance(result, BenchResult)
    return result
