"""Forecasts of what a build will take, kept in the lake under the labels of the agents that were measured."""

from collections.abc import Iterable

from pydantic import ValidationError

from infra.lake import Lake, LakeError
from infra.token_count import TokenCount
from schemas.label import AgentLabel
from schemas.record import Record, content_id


class AgentForecast(Record):
    """What one agent will take for the forecast's clips, from `measured_clips` of them at the same rate.

    `busy_s` is the time of all its `workers` together, `error_s` its standard error (None where one micro-batch was
    measured), `wall_s` by the clock with all of them busy, after `load_s`. `gpu_h` are of the GPUs that its workers
    hold as long as the run lasts: an agent behind a chat server has none of its own. `tokens` is None for an agent that
    asks no chat server. `load_s` is 0 in forecasts of programs that did not keep it.
    """

    agent: str
    engine: str
    measured_clips: int
    workers: int
    busy_s: float
    error_s: float | None
    wall_s: float
    gpu_h: float
    stored_bytes: int
    tokens: TokenCount | None
    load_s: float = 0.0


class Sharing(Record):
    """Agents that work on the same thing, `name`: a chat server, by its address, or the processors of one machine.

    `turns` is the part of their times, added up, that went by on the clock in the sample: 1 where no two of them were
    at work at once.
    """

    name: str
    agents: tuple[str, ...]
    turns: float


class Clock(Record):
    """What a build takes by the clock, one after another: rows are cut, engines loaded, the chain filled with a first
    unit, and those agents do their work that take longest, several where they share something.

    `cutting_s` is None where it was not measured.
    """

    cutting_s: float | None
    loading_s: float
    filling_s: float
    bound_by: tuple[str, ...]
    bound_s: float

    @property
    def run_s(self) -> float:
        """From the first agent's first clip to the end: as long as GPUs are held."""
        return self.loading_s + self.filling_s + self.bound_s

    @property
    def wall_s(self) -> float:
        """All of it."""
        return self.run_s + (self.cutting_s or 0.0)


class Forecast(Record):
    """What a build of `clips` clips will take, as measured in build `measured_in` of `sample_clips`.

    `servers_gpu_h` are of the vLLM servers that the run starts, which it holds as long as it lasts. `build_bytes` are
    the shards; `frames_bytes` bounds the decoded frames that each node keeps besides. Times are ISO 8601 text:
    `made_at`, `measured_at`, and `done_at` for a build that begins when the forecast is made. `doubts` say what the
    sample could not tell. Fields from `measured_at` on are empty in forecasts of programs that kept none.
    """

    labels: tuple[AgentLabel, ...]
    profile_name: str
    measured_in: str
    sample_clips: int
    clips: int
    agents: tuple[AgentForecast, ...]
    servers_gpu_h: float
    build_bytes: int
    frames_bytes: int
    made_at: str
    done_at: str
    measured_at: str = ""
    sharing: tuple[Sharing, ...] = ()
    clock: Clock | None = None
    doubts: tuple[str, ...] = ()

    @property
    def gpu_h(self) -> float:
        """GPU-hours of agents and servers together."""
        return self.servers_gpu_h + sum(agent.gpu_h for agent in self.agents)

    @property
    def stored_bytes(self) -> int:
        """What the lake will hold of it: every agent's outputs and the shards."""
        return self.build_bytes + sum(agent.stored_bytes for agent in self.agents)


class AgentError(Record):
    """One agent's forecast, for the `clips` that it then worked on, beside what these took."""

    agent: str
    clips: int
    predicted_s: float
    measured_s: float
    predicted_bytes: int
    measured_bytes: int
    predicted_tokens: int | None
    measured_tokens: int | None


class ForecastError(Record):
    """How far off a forecast was, by agent, in busy seconds.

    By the clock it is from the first row that was cut to the last clip of the last agent. GPU-hours are those held,
    None in records of programs that did not keep them.
    """

    agents: tuple[AgentError, ...]
    predicted_wall_s: float
    measured_wall_s: float
    predicted_build_bytes: int
    measured_build_bytes: int
    predicted_gpu_h: float | None = None
    measured_gpu_h: float | None = None


def put_forecast(lake: Lake, forecast: Forecast) -> None:
    """Keep a forecast, in place of an earlier one for the same agents."""
    lake.put(_name(forecast.labels), forecast.model_dump_json(indent=2).encode())


def find_forecast(lake: Lake, labels: Iterable[AgentLabel]) -> Forecast | None:
    """The forecast for agents of exactly these labels, None where there is none; raises LakeError for a torn one."""
    name = _name(labels)
    text = lake.get(name)
    if text is None:
        return None
    try:
        return Forecast.model_validate_json(text)
    except ValidationError as error:
        raise LakeError(f"{lake.path(name)} is no forecast: {error.errors()[0]['msg']}; delete it") from error


def _name(labels: Iterable[AgentLabel]) -> str:
    return f"forecasts/{content_id(*labels)[:16]}.json"
