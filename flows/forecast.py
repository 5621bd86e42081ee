"""What a build of many clips will take, from what a build of a few took; and afterwards, how far off that was.

Each agent's seconds, tokens and bytes a clip are those of the sample, so they grow with the clips. Units overlap, so
the slowest agent decides by the clock. Loading models, cutting rows and the start of the chain are left out; shards of
a few rows weigh more a clip than those of many. A sample of one unit has no two agents at work at once: where agents
share processors, a longer build slows them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from flows.grid import Grid, size, with_filled_columns
from flows.profile_config import ROLES, Profile, Resources, Role
from flows.progress import duration
from infra.builds import Manifest, list_builds
from infra.forecasts import AgentError, AgentForecast, Forecast, ForecastError, find_forecast
from infra.lake import Lake, LakeError
from infra.token_count import TokenCount
from infra.work import AgentWork
from schemas.label import AgentLabel

ASSUMES = (
    "seconds, tokens and bytes grow with the clips as in the sample; the slowest agent decides by the clock; models "
    "are loaded and rows cut besides; agents that share processors slow one another more in a longer build; GPUs of "
    "chat servers that the run does not start are not counted"
)


class ForecastUsageError(ValueError):
    """A forecast that cannot be made as it was asked for, in one line."""


def measured_build(lake: Lake, labels: Iterable[AgentLabel], min_clips: int) -> Manifest | None:
    """The newest build by exactly these agents that tells what each took for `min_clips` clips or more."""
    wanted = tuple(labels)
    found = (
        manifest
        for manifest in reversed(list_builds(lake))
        if manifest.labels == wanted and all(entry.clips >= min_clips for entry in _measured(manifest).values())
    )
    return next((manifest for manifest in found if _measured(manifest).keys() == set(ROLES)), None)


def foresee(
    manifest: Manifest, profile: Profile, clips: int, workers: Mapping[Role, int], now: datetime | None = None
) -> Forecast:
    """The forecast for `clips` clips from what a build took; `workers` stand in place of the profile's.

    Raises ForecastUsageError where the build does not tell what an agent took, or held as many clips itself.
    """
    measured = _measured(manifest)
    sample_clips = num_clips(manifest)
    if missing := [role for role in ROLES if role not in measured]:
        raise ForecastUsageError(
            f"build {manifest.build_id} does not tell what {', '.join(missing)} take: the lake held what they make of "
            "these rows, or none came through to them (videorefer quarantine list); ask for a larger --sample"
        )
    if clips <= sample_clips:
        raise ForecastUsageError(f"the sample has {sample_clips} clips, so --clips must be more, got {clips}")
    agents = tuple(_agent(measured[role], role, profile, clips, workers) for role in ROLES)
    made_at = now or datetime.now(UTC)
    wall_s = max(agent.wall_s for agent in agents)
    return Forecast(
        labels=manifest.labels,
        profile_name=profile.name,
        measured_in=manifest.build_id,
        sample_clips=sample_clips,
        clips=clips,
        agents=agents,
        servers_gpu_h=wall_s / 3600 * sum(vllm.gpus * vllm.replicas for vllm in profile.vllm),
        build_bytes=round(sum(shard.bytes for shard in manifest.shards) * clips / sample_clips),
        frames_bytes=profile.decode_cache_mib * 2**20,
        made_at=made_at.isoformat(timespec="seconds"),
        done_at=(made_at + timedelta(seconds=wall_s)).isoformat(timespec="seconds"),
    )


def num_clips(manifest: Manifest) -> int:
    """How many clips a build was made of."""
    return sum(entry.n for entry in manifest.counts if (entry.group, entry.name) == ("stages", "source: clips"))


def _measured(manifest: Manifest) -> dict[str, AgentWork]:
    return {entry.agent: entry for entry in manifest.work if entry.clips and entry.cost}


def _agent(work: AgentWork, role: Role, profile: Profile, clips: int, workers: Mapping[Role, int]) -> AgentForecast:
    assert work.cost is not None, "only work with its cost is measured"
    resources = profile.batching(role)
    num_workers = workers.get(role, profile.workers(role))
    busy_s = work.s_per_clip * clips
    error = work.cost.error_s_per_clip
    return AgentForecast(
        agent=role,
        engine=work.engine,
        measured_clips=work.clips,
        workers=num_workers,
        busy_s=busy_s,
        error_s=None if error is None else error * clips,
        wall_s=busy_s / num_workers,
        gpu_h=busy_s / 3600 * (resources.gpus if isinstance(resources, Resources) else 0.0),
        stored_bytes=round(work.cost.stored_bytes * clips / work.clips),
        tokens=work.cost.tokens and _scaled(work.cost.tokens, clips / work.clips),
    )


def _scaled(count: TokenCount, factor: float) -> TokenCount:
    return TokenCount(**{name: round(value * factor) for name, value in count.model_dump().items()})


def forecast_table(forecast: Forecast) -> Grid:
    """One row an agent, one for vLLM servers, one for the shards; empty columns are left out."""
    titles = ("agent", "clips", "busy", "spread", "workers", "by the clock", "GPU-hours", "tokens", "in the lake")
    rows = [_forecast_row(agent, forecast.clips) for agent in forecast.agents]
    if forecast.servers_gpu_h:
        rows.append(("vLLM servers", *("",) * 5, f"{forecast.servers_gpu_h:,.2f}", "", ""))
    rows.append(("shards", f"{forecast.clips:,}", *("",) * 6, size(forecast.build_bytes)))
    return with_filled_columns(titles, rows)


def _forecast_row(agent: AgentForecast, clips: int) -> tuple[str, ...]:
    share = "" if agent.error_s is None or not agent.busy_s else f"± {100 * agent.error_s / agent.busy_s:.0f} %"
    tokens = f"{agent.tokens.prompt_tokens:,} + {agent.tokens.completion_tokens:,}" if agent.tokens else ""
    return (
        agent.agent,
        f"{clips:,}",
        _time(agent.busy_s),
        share,
        str(agent.workers),
        _time(agent.wall_s),
        f"{agent.gpu_h:,.2f}" if agent.gpu_h else "",
        tokens,
        size(agent.stored_bytes),
    )


def forecast_text(forecast: Forecast) -> str:
    """The forecast for a terminal."""
    slowest = forecast.slowest
    done_at = datetime.fromisoformat(forecast.done_at).astimezone()
    return "\n".join(
        [
            f"{forecast.clips:,} clips with profile {forecast.profile_name}, measured on {forecast.sample_clips} clips "
            f"of build {forecast.measured_in}:",
            forecast_table(forecast).text(),
            f"about {duration(slowest.wall_s)}, for the {slowest.agent}: begun now, done {done_at:%a %d %b %H:%M}; "
            f"{forecast.gpu_h:,.2f} GPU-hours, {size(forecast.stored_bytes)} in the lake, and up to "
            f"{size(forecast.frames_bytes)} of decoded frames on each node",
            f"spread is one standard error of the sample's micro-batches; {ASSUMES}",
        ]
    )


def forecast_error(
    lake: Lake, labels: Sequence[AgentLabel], profile: Profile, clips: int, work: Iterable[AgentWork], build_bytes: int
) -> ForecastError | None:
    """How far off the lake's forecast for these agents was, from what they did in one run of a build of `clips` clips.

    By the clock, what was forecast is taken for the workers that the build's own profile has. None where there is no
    forecast for these very agents, where the build is no larger than the forecast's own sample, and where nothing was
    done.
    """
    forecast = None
    with suppress(LakeError):  # a torn forecast is not worth a build
        forecast = find_forecast(lake, labels)
    done = {entry.agent: entry for entry in work if entry.clips}
    if forecast is None or clips <= forecast.sample_clips or not done:
        return None
    pairs = [(agent, done[agent.agent]) for agent in forecast.agents if agent.agent in done]
    return ForecastError(
        agents=tuple(_error(agent, entry, entry.clips / forecast.clips) for agent, entry in pairs),
        predicted_wall_s=max(
            agent.busy_s * entry.clips / forecast.clips / _workers(agent, profile) for agent, entry in pairs
        ),
        measured_wall_s=max(entry.cost.elapsed_s for _, entry in pairs if entry.cost),
        predicted_build_bytes=round(forecast.build_bytes * clips / forecast.clips),
        measured_build_bytes=build_bytes,
    )


def _workers(agent: AgentForecast, profile: Profile) -> int:
    return next(profile.workers(role) for role in ROLES if role == agent.agent)


def _error(agent: AgentForecast, entry: AgentWork, share: float) -> AgentError:
    assert entry.cost is not None, "work of this run has its cost"
    predicted, measured = agent.tokens, entry.cost.tokens
    return AgentError(
        agent=agent.agent,
        clips=entry.clips,
        predicted_s=agent.busy_s * share,
        measured_s=entry.busy_s,
        predicted_bytes=round(agent.stored_bytes * share),
        measured_bytes=entry.cost.stored_bytes,
        predicted_tokens=None if predicted is None else round(_both(predicted) * share),
        measured_tokens=None if measured is None else _both(measured),
    )


def _both(count: TokenCount) -> int:
    return count.prompt_tokens + count.completion_tokens


def error_table(error: ForecastError) -> Grid:
    """One row an agent, one by the clock, one for the shards; each figure as predicted, measured, and the error."""
    titles = ("agent", "clips", "busy", "was", "error", "tokens", "were", "error", "in the lake", "was", "error")
    return with_filled_columns(
        titles,
        [
            *(_error_row(agent) for agent in error.agents),
            ("by the clock", "", *_beside(error.predicted_wall_s, error.measured_wall_s, _time), *("",) * 6),
            ("shards", *("",) * 7, *_beside(error.predicted_build_bytes, error.measured_build_bytes, size)),
        ],
    )


def _error_row(agent: AgentError) -> tuple[str, ...]:
    predicted, measured = agent.predicted_tokens, agent.measured_tokens
    tokens = ("",) * 3 if predicted is None or measured is None else _beside(predicted, measured, "{:,.0f}".format)
    return (
        agent.agent,
        f"{agent.clips:,}",
        *_beside(agent.predicted_s, agent.measured_s, _time),
        *tokens,
        *_beside(agent.predicted_bytes, agent.measured_bytes, size),
    )


def _beside(predicted: float, measured: float, said: Callable[[float], str]) -> tuple[str, str, str]:
    """Both figures, and by how much the predicted one is too high."""
    return said(predicted), said(measured), f"{100 * (predicted / measured - 1):+.0f} %" if measured else ""


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)
