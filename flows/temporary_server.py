"""The Prefect server of one build: `python -m flows.temporary_server PORT`, started by `flows.server`.

It is the server that Prefect itself starts where none is named, with one difference: it ends when its standard input
does, thus with its driver, whatever ends that one; and a Ctrl-C at the terminal does not reach it, so that it still
takes in the state in which its build ended.
"""

import os
import sys
import threading
import time

import uvicorn

STOP_S = 10.0
"""What it may take to answer what is still asked, once its driver is gone."""


def main(port: int) -> None:
    """Serve on loopback until standard input ends."""
    server: list[uvicorn.Server] = []
    threading.Thread(target=_end_with_input, args=(server,), daemon=True).start()
    from prefect.server.api.server import create_app  # takes seconds: the driver may be gone before

    app = create_app(ephemeral=True, final=True)
    server.append(uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="on")))
    server[0].run()


def _end_with_input(server: list[uvicorn.Server]) -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    if server:
        server[0].should_exit = True
        time.sleep(STOP_S)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
