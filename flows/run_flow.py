"""One flow run from the command line: its server, what earlier runs left there, and how the process ends."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from rich.console import Console

from flows.cli_common import FAILED, INTERRUPTED, fail, server_lost, tell
from flows.server import point_prefect_at_server
from infra.ray_folder import sweep_lost_folders


@contextmanager
def flow_on_page(console: Console) -> Iterator[None]:
    """Choose Prefect's server, before a flow is imported in the block, and end what killed runs left.

    Runs that are started inside carry the tag of this process. One that was cancelled, or that lost its server, ends
    the process.
    """
    has_page = point_prefect_at_server()
    from httpx import HTTPError, TransportError
    from prefect import tags
    from prefect.exceptions import CancelledRun

    from flows.leftovers import end_lost_runs, process_tag, wait_until_told
    from flows.run_watch import ServerLostError

    logging.raiseExceptions = False  # that a log line did not reach a server that is gone is no news
    sweep_lost_folders()
    if num_lost := end_lost_runs():
        console.print(f"runs of killed commands that now count as ended: {num_lost}", highlight=False)
    if has_page:
        console.print(f"watch it: {os.environ['PREFECT_API_URL'].removesuffix('/api')}/runs", highlight=False)
    try:
        with tags(process_tag()):
            yield
    except CancelledRun as said:
        fail(str(said), INTERRUPTED)
    except (ServerLostError, TransportError) as error:
        _leave(server_lost(error))
    finally:
        if not has_page:
            with suppress(HTTPError):
                wait_until_told()


def _leave(message: str) -> NoReturn:
    """Fail without the interpreter's own end, in which Prefect would try for minutes to tell its server the last."""
    tell(message)
    sys.stderr.flush()
    os._exit(FAILED)
