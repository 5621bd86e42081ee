"""What a build of many clips will take, from what a build of a few took; and afterwards, how far off that was.

Each agent's seconds, tokens and bytes a clip are those of the sample, so they grow with the clips; shards of a few rows
weigh more a clip than those of many. By the clock see `flows.forecast_clock`; what the sample could not tell is said
with the forecast (`flows.forecast_doubts`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from flows.forecast_clock import clock_of, gpus_held, gpus_of_servers, sharing_of, unit_share
from flows.forecast_doubts import doubts
from flows.grid import Grid, size, with_filled_columns
from flows.profile_config import ROLES, Profile, Role
from flows.progress import duration
from infra.builds import Manifest, list_builds
from infra.forecasts import AgentError, AgentForecast, Clock, Forecast, ForecastError, Sharing, find_forecast
from infra.lake import Lake, LakeError
from infra.token_count import TokenCount
from infra.work import CUTTING, AgentWork
from schemas.label import AgentLabel

ASSUMES = (
    "the sample is the source's first rows, and seconds, tokens and bytes grow with the clips as in it; agents that "
    "share a chat server, or one machine's processors, take turns as in it; those that share a GPU are taken not to "
    "slow one another; GPUs are held from the first clip to the last; those of chat servers that the run does not "
    "start are not counted"
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
    manifest: Manifest,
    profile: Profile,
    clips: int,
    workers: Mapping[Role, int],
    ray_address: str | None = None,
    now: datetime | None = None,
) -> Forecast:
    """The forecast for `clips` clips from what a build took; `workers` stand in place of the profile's.

    It is for the cluster at `ray_address`, or for one machine. Raises ForecastUsageError where the build does not tell
    what an agent took.
    """
    measured = _measured(manifest)
    sample_clips = num_clips(manifest)
    if missing := [role for role in ROLES if role not in measured]:
        raise ForecastUsageError(
            f"build {manifest.build_id} does not tell what {', '.join(missing)} take: the lake held what they make of "
            "these rows, or chat servers were hardly asked, as the answers were kept (another VIDEOREFER_CACHE has "
            "none), or none came through to them (videorefer quarantine list); ask for a larger --sample"
        )
    agents = tuple(_agent(measured[role], role, profile, clips, workers) for role in ROLES)
    cutting = next((entry for entry in manifest.work if entry.agent == CUTTING and entry.clips), None)
    sharing = _sharing(measured, profile, ray_address)
    clock = clock_of(
        {agent.agent: agent.wall_s for agent in agents},
        sharing,
        loading_s=sum(agent.load_s for agent in agents),
        unit_share=unit_share(profile, clips),
        cutting_s=cutting.s_per_clip * clips if cutting else None,
    )
    run_h, made_at = clock.run_s / 3600, now or datetime.now(UTC)
    return Forecast(
        labels=manifest.labels,
        profile_name=profile.name,
        measured_in=manifest.build_id,
        sample_clips=sample_clips,
        clips=clips,
        agents=tuple(
            agent.model_copy(update={"gpu_h": run_h * gpus_held(role, profile, agent.workers)})
            for role, agent in zip(ROLES, agents, strict=True)
        ),
        servers_gpu_h=run_h * gpus_of_servers(profile),
        build_bytes=round(sum(shard.bytes for shard in manifest.shards) * clips / sample_clips),
        frames_bytes=profile.decode_cache_mib * 2**20,
        made_at=made_at.isoformat(timespec="seconds"),
        done_at=(made_at + timedelta(seconds=clock.wall_s)).isoformat(timespec="seconds"),
        measured_at=manifest.created_at,
        sharing=sharing,
        clock=clock,
        doubts=tuple(doubts(manifest, measured, profile, sample_clips, ray_address)),
    )


def num_clips(manifest: Manifest) -> int:
    """How many clips a build was made of."""
    return sum(entry.n for entry in manifest.counts if (entry.group, entry.name) == ("stages", "source: clips"))


def _measured(manifest: Manifest) -> dict[str, AgentWork]:
    return {entry.agent: entry for entry in manifest.work if entry.clips and entry.cost and not _was_kept(entry)}


def _was_kept(entry: AgentWork) -> bool:
    """Whether most answers came from the cache, so that what asking takes is not known."""
    count = entry.cost.tokens if entry.cost else None
    return count is not None and count.cached > count.requests


def _sharing(measured: Mapping[str, AgentWork], profile: Profile, ray_address: str | None) -> tuple[Sharing, ...]:
    costs = {role: cost for role in ROLES if (cost := measured[role].cost)}
    walls: dict[str, float] = {role: measured[role].busy_s / profile.workers(role) for role in ROLES}
    return sharing_of(costs, walls, profile, ray_address)


def _agent(work: AgentWork, role: Role, profile: Profile, clips: int, workers: Mapping[Role, int]) -> AgentForecast:
    assert work.cost is not None, "only work with its cost is measured"
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
        gpu_h=0.0,  # known with the clock
        stored_bytes=round(work.cost.stored_bytes * clips / work.clips),
        tokens=work.cost.tokens and _scaled(work.cost.tokens, clips / work.clips),
        load_s=work.cost.load_s or 0.0,
    )


def _scaled(count: TokenCount, factor: float) -> TokenCount:
    return TokenCount(**{name: round(value * factor) for name, value in count.model_dump().items()})


def forecast_table(forecast: Forecast) -> Grid:
    """A row for cutting and for loading, one an agent, one for vLLM servers, one for the shards; empty columns are left
    out.
    """
    titles = ("agent", "clips", "busy", "spread", "workers", "by the clock", "GPU-hours", "tokens", "in the lake")
    rows = list(_clock_rows(forecast.clock, forecast.clips)) if forecast.clock else []
    rows += [_forecast_row(agent, forecast.clips) for agent in forecast.agents]
    if forecast.servers_gpu_h:
        rows.append(("vLLM servers", *("",) * 5, f"{forecast.servers_gpu_h:,.2f}", "", ""))
    rows.append(("shards", f"{forecast.clips:,}", *("",) * 6, size(forecast.build_bytes)))
    return with_filled_columns(titles, rows)


def _clock_rows(clock: Clock, clips: int) -> Iterator[tuple[str, ...]]:
    if clock.cutting_s is not None:
        yield (CUTTING, f"{clips:,}", *("",) * 3, _time(clock.cutting_s), *("",) * 3)
    yield ("loading", *("",) * 4, _time(clock.loading_s), *("",) * 3)


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
    assert forecast.clock is not None, "a forecast that was made now has its clock"
    done_at = datetime.fromisoformat(forecast.done_at).astimezone()
    return "\n".join(
        [
            f"{forecast.clips:,} clips with profile {forecast.profile_name}, measured on {forecast.sample_clips} clips "
            f"of build {forecast.measured_in}, at {datetime.fromisoformat(forecast.measured_at):%Y-%m-%d %H:%M}:",
            forecast_table(forecast).text(),
            f"about {duration(forecast.clock.wall_s)}, bound by {' + '.join(forecast.clock.bound_by)}: begun now, done "
            f"{done_at:%a %d %b %H:%M}; {forecast.gpu_h:,.2f} GPU-hours, {size(forecast.stored_bytes)} in the lake, "
            f"and up to {size(forecast.frames_bytes)} of decoded frames on each node",
            f"spread is one standard error of the sample's micro-batches; {ASSUMES}",
            *(f"doubt: {line}" for line in forecast.doubts),
        ]
    )


def forecast_error(
    lake: Lake, labels: Sequence[AgentLabel], profile: Profile, clips: int, work: Iterable[AgentWork], build_bytes: int
) -> ForecastError | None:
    """How far off the lake's forecast for these agents was, from what they did in one run of a build of `clips` clips.

    By the clock and in GPU-hours, what was forecast is taken for the workers that the build's own profile has. None
    where there is no forecast for these very agents, where the build is no larger than the forecast's own sample, and
    where nothing was done.
    """
    forecast = None
    with suppress(LakeError):  # a torn forecast is not worth a build
        forecast = find_forecast(lake, labels)
    done = {entry.agent: entry for entry in work if entry.clips}
    if forecast is None or clips <= forecast.sample_clips or not done.keys() & set(ROLES):
        return None
    pairs = [(agent, done[agent.agent]) for agent in forecast.agents if agent.agent in done]
    predicted = _clock_again(forecast, profile, done)
    run_s = max(entry.cost.elapsed_s + (entry.cost.begin_s or 0.0) for _, entry in pairs if entry.cost)
    cutting_s = done[CUTTING].busy_s if predicted.cutting_s is not None else 0.0
    gpus = gpus_of_servers(profile) + sum(
        gpus_held(role, profile, profile.workers(role)) for role in ROLES if role in done
    )
    return ForecastError(
        agents=tuple(_error(agent, entry, entry.clips / forecast.clips) for agent, entry in pairs),
        predicted_wall_s=predicted.wall_s,
        measured_wall_s=cutting_s + run_s,
        predicted_build_bytes=round(forecast.build_bytes * clips / forecast.clips),
        measured_build_bytes=build_bytes,
        predicted_gpu_h=predicted.run_s / 3600 * gpus,
        measured_gpu_h=run_s / 3600 * gpus,
    )


def _clock_again(forecast: Forecast, profile: Profile, done: Mapping[str, AgentWork]) -> Clock:
    """The clock that the forecast stands for, with the workers of a profile and what was done of its clips."""
    workers: dict[str, int] = {role: profile.workers(role) for role in ROLES}
    agents = [agent for agent in forecast.agents if agent.agent in done]
    walls = {
        agent.agent: agent.busy_s * done[agent.agent].clips / forecast.clips / workers[agent.agent] for agent in agents
    }
    cut = done.get(CUTTING)
    rate_s = forecast.clock.cutting_s if forecast.clock else None
    most = max(done[agent.agent].clips for agent in agents)
    return clock_of(
        walls,
        forecast.sharing,
        loading_s=sum(agent.load_s for agent in agents),
        unit_share=unit_share(profile, most),
        cutting_s=None if cut is None or rate_s is None else rate_s * cut.clips / forecast.clips,
    )


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
    """One row an agent, one by the clock, one for GPU-hours if any, one for the shards; each figure as predicted,
    measured, and the error.
    """
    titles = ("agent", "clips", "busy", "was", "error", "tokens", "were", "error", "in the lake", "was", "error")
    return with_filled_columns(
        titles,
        [
            *(_error_row(agent) for agent in error.agents),
            ("by the clock", "", *_beside(error.predicted_wall_s, error.measured_wall_s, _time), *("",) * 6),
            *(
                [("GPU-hours", "", *_beside(error.predicted_gpu_h, error.measured_gpu_h, "{:,.2f}".format), *("",) * 6)]
                if error.predicted_gpu_h and error.measured_gpu_h
                else ()
            ),
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
