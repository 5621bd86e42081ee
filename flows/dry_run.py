"""What a build would do, told from the source and the lake alone: nothing is written, no video opened, nothing started.

An estimate comes from what the lake's latest build measured: seconds that an agent was busy for each clip, on the
machine it ran on. Agents work side by side, so the slowest one decides; loading models and cutting rows are left out.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.chain import Chain
from flows.decontaminate import BenchVideos, near_duplicates
from flows.diff_causes import AgentChange, Content, content_of, label_changes
from flows.plan import known_rows
from flows.profile_config import ROLES, Profile, Role
from flows.progress import duration
from flows.wiring import agent_labels, annotator_needs
from infra.builds import Manifest, committed_manifest, latest_build
from infra.lake import Lake
from infra.work import AgentWork
from schemas.clip import Clip
from schemas.label import AgentLabel
from schemas.record import Record


class AgentPlan(Record):
    """What one agent would do: `clips`, at `s_per_clip` measured seconds each, in `busy_s` on all its workers.

    Both are None where no build of the lake has measured this agent with this engine.
    """

    agent: Role
    clips: int
    workers: int
    s_per_clip: float | None
    busy_s: float | None


class Cause(Record):
    """One reason to work, and how many clips each agent has to do for it."""

    why: str
    clips: dict[Role, int]


class DryRun(Record):
    """What a build would do.

    Of `rows` in the source, `uncut` have not been cut into clips: what they give is in no other figure. `looked_again`
    gave no clip in the latest build and are checked by every run; a bench asks about `bench_videos`, kept out for that.
    `clips` are those known, without `near_duplicates`, as far as the lake can tell those; `failed` of them were given
    up before and are left alone. `left_s` is None where an agent that has work was never measured; `left_uncut_s` is
    the same if every uncut row gives one clip.
    """

    rows: int
    uncut: int
    looked_again: int
    bench_videos: int
    near_duplicates: int
    clips: int
    failed: int
    causes: tuple[Cause, ...]
    agents: tuple[AgentPlan, ...]
    left_s: float | None
    left_uncut_s: float | None

    def headline(self) -> str:
        """`refiner prompt changed: 412 of 9,310 clips' refiner, nothing else; about 6 min`."""
        if not self.causes and not self.uncut:
            return f"nothing to do: all {self.clips:,} clips are in the lake"
        parts = [f"{cause.why}: {_agents_of(cause, self.clips)}" for cause in self.causes]
        if self.uncut:
            parts.append(f"{self.uncut:,} of {self.rows:,} rows are not cut into clips yet")
        said = "; ".join(parts)
        if self.uncut:
            guess = f"; {_about(self.left_uncut_s)} if each gives one clip" if self.left_uncut_s is not None else ""
            return said + (guess or ", so their work is not known")
        said += ", nothing else" if len(parts) == 1 else ""
        return said if self.left_s is None else f"{said}; {_about(self.left_s)}"


def dry_run(source: str, root: str | None, lake: Lake, profile: Profile, limit: int | None) -> DryRun:
    """Look at the source and the lake; raises SourceError, ProfileError or LakeError where a build would."""
    known = known_rows(Path(source), Path(root) if root else None, lake, profile, limit)
    benches = BenchVideos(profile.decontamination, lake)
    copies = near_duplicates(known.clips, benches.held(), profile.decontamination.near_distance, lake)
    clips = [clip for clip in known.clips if clip.clip_id not in copies]
    latest_id = latest_build(lake)
    latest = committed_manifest(lake, latest_id) if latest_id else None
    content = content_of(lake, latest) if latest else Content()
    chain = Chain(lake, agent_labels(profile), annotator_needs(profile))
    stale, failed = _to_do(chain, clips)
    again = sum(row.source_id in content.rejected for row in known.fresh)
    uncut = len(known.fresh) - again
    agents = tuple(_agent_plans(stale, chain.labels, latest.work if latest else (), profile))
    return DryRun(
        rows=len(known.rows) + len(known.unread),
        uncut=uncut,
        looked_again=again,
        bench_videos=len(known.barred),
        near_duplicates=len(copies),
        clips=len(clips),
        failed=len(failed),
        causes=tuple(_causes(stale, chain, lake, latest, content)),
        agents=agents,
        left_s=_slowest_s(agents, 0),
        left_uncut_s=_slowest_s(agents, uncut),
    )


def print_dry_run(found: DryRun, console: Console) -> None:
    """The headline, a table by agent, and what the figures leave out."""
    say = partial(console.print, highlight=False, emoji=False, soft_wrap=True)
    say(escape(found.headline()))
    if found.causes:
        table = Table("agent", box=None, header_style="dim")
        for title in ("clips", "s a clip", "workers", "busy"):
            table.add_column(title, justify="right")
        for agent in found.agents:
            rate = "not measured" if agent.s_per_clip is None else f"{agent.s_per_clip:.2f}"
            busy = "" if agent.busy_s is None else duration(agent.busy_s)
            table.add_row(agent.agent, f"{agent.clips:,}", rate, str(agent.workers), busy)
        console.print(table)
        say(_about_the_estimate(found))
    if found.looked_again:
        say(f"{found.looked_again:,} rows gave no clip in the latest build and are looked at again")
    if found.bench_videos:
        say(f"{found.bench_videos:,} rows are videos that a bench asks about and are kept out")
    if found.near_duplicates:
        say(f"{found.near_duplicates:,} clips are copies of held-out clips or of bench videos and are kept out")
    if found.failed:
        say(f"{found.failed:,} clips failed before and are left alone: videorefer quarantine retry")


def _about_the_estimate(found: DryRun) -> str:
    missing = [agent.agent for agent in found.agents if agent.clips and agent.s_per_clip is None]
    if missing:
        return f"no estimate: no build of this lake has measured {', '.join(missing)} with this engine"
    return "an estimate from the seconds that earlier builds were busy: the slowest agent decides, loading comes on top"


def _to_do(chain: Chain, clips: Sequence[Clip]) -> tuple[dict[Role, list[Clip]], set[str]]:
    """For each agent the clips it would work on, and the ids of those that one has given up."""
    failed: dict[str, Role] = {}
    stale: dict[Role, list[Clip]] = {}
    for role in ROLES:
        upstream = chain.upstream[role]
        alive = [clip for clip in clips if failed.get(clip.clip_id) not in upstream]
        stale[role] = chain.stale(role, alive)
        failed |= {entry.clip_id: role for entry in chain.failures(role, alive)}
    return stale, set(failed)


def _causes(
    stale: Mapping[Role, Sequence[Clip]], chain: Chain, lake: Lake, latest: Manifest | None, content: Content
) -> Iterator[Cause]:
    counts: dict[str, Counter[Role]] = {}
    changes = label_changes(latest.labels, tuple(chain.labels.values())) if latest else ()
    before = _chain_of(latest, chain, lake) if latest else None
    for role, clips in stale.items():
        mine = [change for change in changes if change.agent in (*chain.upstream[role], role)]
        done = {clip.clip_id for clip in clips} - {clip.clip_id for clip in _unsettled(before, role, clips)}
        for clip in clips:
            why = _why(clip, done, mine, content, latest is None)
            counts.setdefault(why, Counter())[role] += 1
    for why, num in counts.items():
        yield Cause(why=why, clips=dict(num))


def _unsettled(before: Chain | None, role: Role, clips: Sequence[Clip]) -> Iterable[Clip]:
    return clips if before is None else before.stale(role, clips)


def _why(clip: Clip, done: set[str], changes: Sequence[AgentChange], content: Content, is_first: bool) -> str:
    """Why an agent has to work on a clip: its label or one before it changed, or the clip is new to it."""
    if clip.clip_id in done and changes:
        return f"{changes[0].describe()} changed"
    if is_first:
        return "first build"
    if clip.clip_id not in content.clips:
        return "changed rows" if clip.source_id in content.sources else "new rows"
    return "failures taken out of quarantine" if clip.clip_id in content.failed else "not done yet"


def _chain_of(manifest: Manifest, chain: Chain, lake: Lake) -> Chain | None:
    """The chain that made a build; None where its agents are not today's."""
    labels: dict[Role, AgentLabel] = {role: label for role in ROLES for label in manifest.labels if label.agent == role}
    if labels.keys() != chain.labels.keys():
        return None
    try:
        needs = annotator_needs(Profile.model_validate_json(manifest.profile_json))
    except ValueError:  # a profile of another version; its annotator most likely read the same
        needs = "tracks" if "segmenter" in chain.upstream["annotator"] else "mentions"
    return Chain(lake, labels, needs)


def _agent_plans(
    stale: Mapping[Role, Sequence[Clip]],
    labels: Mapping[Role, AgentLabel],
    work: Sequence[AgentWork],
    profile: Profile,
) -> Iterator[AgentPlan]:
    measured = {(entry.agent, entry.engine): entry.s_per_clip for entry in work if entry.clips}
    for role in ROLES:
        s_per_clip = measured.get((role, labels[role].engine))
        yield AgentPlan(
            agent=role,
            clips=len(stale[role]),
            workers=profile.workers(role),
            s_per_clip=s_per_clip,
            busy_s=None if s_per_clip is None else s_per_clip * len(stale[role]),
        )


def _slowest_s(agents: Sequence[AgentPlan], more_clips: int) -> float | None:
    """Seconds until the last agent is through with its clips and some more, None where one was never measured."""
    needed = [agent for agent in agents if agent.clips + more_clips]
    if any(agent.s_per_clip is None for agent in needed):
        return None
    return max(((a.clips + more_clips) * (a.s_per_clip or 0.0) / a.workers for a in needed), default=0.0)


def _about(seconds: float) -> str:
    return "less than a minute of work" if seconds < 60 else f"about {duration(seconds)}"


def _agents_of(cause: Cause, num_clips: int) -> str:
    by_count: dict[int, list[Role]] = {}
    for role, n in cause.clips.items():
        by_count.setdefault(n, []).append(role)
    return ", ".join(
        f"{n:,} of {num_clips:,} clips' {'five agents' if len(roles) == len(ROLES) else _listed(roles)}"
        for n, roles in by_count.items()
    )


def _listed(roles: Sequence[str]) -> str:
    return roles[0] if len(roles) == 1 else f"{', '.join(roles[:-1])} and {roles[-1]}"
