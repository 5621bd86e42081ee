"""One chaos trial: a build that is killed once or twice, run again to its end, and held against an undisturbed one."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pyarrow.parquet as pq
from kills import ENDS, KILLS, MARK, TWO, Target, processes_of, runs_on

BUILD_TIMEOUT_S = 300.0
GONE_WITHIN_S = 90.0
"""Ray's agent of runtime environments, hit while it starts, looks for its control store for 60 s (75 s were seen)."""
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}
CODE = "import sys; from flows.names import main; main()"
NOT_COMPARED = ("created_at", "command", "work", "videos_root")
"""Of the manifest: when, by which words and how long it was made."""


@dataclass
class Site:
    """What the trials share: a folder, the source and the profile, and the lasting server."""

    folder: Path
    source: Path
    profile: Path
    port: int
    server_pid: int = 0

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    def mark(self, trial: str) -> str:
        """The mark of what a trial starts; the empty name's is the beginning of all marks."""
        return f"{self.folder.name}/{trial}"

    def environment(self, trial: str, cache: str) -> dict[str, str]:
        own = {
            MARK: self.mark(trial),
            "VIDEOREFER_CACHE": str(self.folder / cache),
            "PREFECT_HOME": str(self.folder / "prefect"),
            "TMPDIR": str(self.folder / "t"),
            "COLUMNS": "200",
        }
        return {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"} | own

    def up(self) -> None:
        """Start the lasting server, if it does not run."""
        command = [sys.executable, "-c", CODE, "up", "--port", str(self.port), "--no-ray"]
        subprocess.run(command, env=self.environment("server", "cache"), check=True, capture_output=True)
        self.server_pid = json.loads((self.folder / "cache" / "prefect-server.json").read_text())["server"]["pid"]

    def down(self) -> None:
        """Stop it."""
        command = [sys.executable, "-c", CODE, "down"]
        subprocess.run(command, env=self.environment("server", "cache"), check=True, capture_output=True)


@dataclass(frozen=True)
class Moment:
    """So many seconds after the lake held so many parts: progress, unlike time, means the same on a busy machine."""

    parts: int
    then_s: float

    def wait(self, driver: "subprocess.Popen[bytes]", lake: Path) -> bool:
        """Wait for it; False where the build ended before."""
        while driver.poll() is None and sum(1 for _ in lake.glob("agents/*/*/part-*.parquet")) < self.parts:
            time.sleep(0.02)
        try:
            driver.wait(self.then_s)
        except subprocess.TimeoutExpired:
            return True
        return False

    def __str__(self) -> str:
        return f"{self.then_s:.1f} s after part {self.parts}"


@dataclass
class Trial:
    """What a trial is to do, what it did, and what was wrong."""

    name: str
    kinds: tuple[str, ...]
    moments: tuple["Moment", ...]
    has_lasting_server: bool
    folder: Path
    did: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    resume_s: float = 0.0

    @property
    def lake(self) -> Path:
        return self.folder / "lake"


def draw(number: int, kind: str, rng: random.Random, num_parts: int, folder: Path) -> Trial:
    """A trial with its kills and their moments; one in three is hit twice.

    One moment in four lies before the first part, when servers and Ray come up; after the last part comes publishing.
    """
    kinds = (kind,) if kind == TWO or rng.random() < 2 / 3 else (kind, rng.choice(list(KILLS)))
    moments = tuple(
        Moment(0, rng.uniform(0.2, 15.0)) if rng.random() < 1 / 4 else Moment(rng.randint(1, num_parts), rng.random())
        for _ in kinds
    )
    return Trial(f"{number:02d}", kinds, moments, rng.random() < 0.5, folder / f"trial-{number:02d}")


def run_trial(trial: Trial, site: Site, reference: Path) -> None:
    """Do it; what is wrong is in `trial.wrong`."""
    trial.folder.mkdir()
    has_disk = "disk full" in trial.kinds and mounted(trial.folder)
    try:
        done = keys_by_part(trial.lake)
        for kind, moment in zip(trial.kinds, trial.moments, strict=True):
            two_builds(trial, site, moment) if kind == TWO else hit(trial, site, kind, moment)
            (trial.folder / "filler").unlink(missing_ok=True)
            if kind == "server":
                site.up()
            check_not_done_again(trial, done)
            done = keys_by_part(trial.lake)
        began_s = time.monotonic()
        code = end(trial, start(trial, site), "last")
        trial.resume_s = time.monotonic() - began_s
        if code != 0:
            trial.wrong.append(f"the last run ended with {code}")
        check_not_done_again(trial, done)
        check_build(trial, reference)
        check_runs(trial, site)
        check_nothing_left(trial, site)
    except Exception as error:
        trial.wrong.append(f"the trial itself failed: {error!r}")
        raise
    finally:
        if has_disk and not trial.wrong:
            subprocess.run(["umount", str(trial.folder)], check=False)


def mounted(folder: Path) -> bool:
    """A small disk of its own for the trial, where this user may mount one."""
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def start(trial: Trial, site: Site, name: str = "last") -> "subprocess.Popen[bytes]":
    """The command, always the same."""
    command = [sys.executable, "-c", CODE, "build", "--source", str(site.source), "--lake", str(trial.lake)]
    cache = "cache" if trial.has_lasting_server else "cache-alone"
    with (site.folder / f"{trial.folder.name}-{name}.log").open("wb") as log:
        return subprocess.Popen(
            [*command, "--profile", str(site.profile)],
            env=site.environment(trial.name, cache),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # may be ignored here
        )


def end(trial: Trial, driver: "subprocess.Popen[bytes]", name: str) -> int:
    """Wait for a build; what it printed must be plain lines."""
    try:
        code = driver.wait(BUILD_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        driver.kill()
        trial.wrong.append(f"{name}: the build hung")
        return driver.wait()
    log = trial.folder.parent / f"{trial.folder.name}-{name}.log"
    if found := [sign for sign in ("Traceback", "*** SIG") if sign in log.read_text(errors="replace")]:
        trial.wrong.append(f"{name}: {found} was printed, see {log}")
    return code


def hit(trial: Trial, site: Site, kind: str, moment: Moment) -> None:
    """Start a build, do to it what the kind says at that moment, and see how it ends."""
    name = f"{len(trial.did)}-{kind.replace(' ', '-')}"
    driver = start(trial, site, name)
    server_pid = site.server_pid if trial.has_lasting_server else 0
    target = Target(driver, site.mark(trial.name), trial.lake, site.api_url, server_pid)
    said = KILLS[kind](target) if moment.wait(driver, trial.lake) else "the build ended before"
    began_s = time.monotonic()
    code = end(trial, driver, name)
    took_s = time.monotonic() - began_s
    trial.did.append(f"{kind} {moment}: {said}, ended with {code} after {took_s:.0f} s")
    if code not in ENDS[kind] | {0}:
        trial.wrong.append(f"{name}: ended with {code}")
    if took_s > 60 and code != 0:
        trial.wrong.append(f"{name}: took {took_s:.0f} s to end")


def two_builds(trial: Trial, site: Site, moment: Moment) -> None:
    """Two builds on one lake, the second some time after the first."""
    first = start(trial, site, "first")
    moment.wait(first, trial.lake)
    second = start(trial, site, "second")
    codes = [end(trial, first, "first"), end(trial, second, "second")]
    said = (site.folder / f"{trial.folder.name}-second.log").read_text(errors="replace")
    is_told = "another build works on this lake" in said
    trial.did.append(f"second {moment} of the first: ended with {codes}, told: {is_told}")
    if codes != [0, 0]:
        trial.wrong.append(f"two builds ended with {codes}")
    if 0 < moment.parts < 5 and not is_told:  # the first had much to do when the second began
        trial.wrong.append("the second build did not say that there is a first")


def keys_by_part(lake: Path) -> dict[Path, list[str]]:
    """The keys in every part of every agent's output."""
    parts = sorted(lake.glob("agents/*/*/part-*.parquet"))
    return {part: pq.read_table(part, columns=["key"])["key"].to_pylist() for part in parts}


def check_not_done_again(trial: Trial, before: dict[Path, list[str]]) -> None:
    """No key of a part that was there before may come again, and no part may go."""
    after = keys_by_part(trial.lake)
    held = {(part.parent, key) for part, keys in before.items() for key in keys}
    again = [key for part, keys in after.items() if part not in before for key in keys if (part.parent, key) in held]
    if again:
        trial.wrong.append(f"{len(again)} committed outputs were made again")
    if gone := before.keys() - after.keys():
        trial.wrong.append(f"{len(gone)} parts are gone")


def content_of(lake: Path) -> dict[str, str]:
    """What must be equal: the SHA-256 of every file, of the manifest without `NOT_COMPARED`; a report must be there."""
    found: dict[str, str] = {}
    for path in sorted((*lake.glob("builds/**/*"), *lake.glob("quarantine/**/*"), lake / "latest.json")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        if path.name == "manifest.json":
            kept = {name: value for name, value in json.loads(data).items() if name not in NOT_COMPARED}
            data = json.dumps(kept).encode()
        found[str(path.relative_to(lake))] = "" if path.name == "report.html" else hashlib.sha256(data).hexdigest()
    return found


def check_build(trial: Trial, reference: Path) -> None:
    """The lake holds the undisturbed build and no other, and every row once."""
    ours, theirs = content_of(trial.lake), content_of(reference)
    differ = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    trial.wrong.extend(f"{name} differs from the undisturbed build" for name in differ)
    ids: Counter[str] = Counter()
    for shard in trial.lake.glob("builds/*/data/*/*.parquet"):
        ids.update(pq.read_table(shard, columns=["sample_id"])["sample_id"].to_pylist())
    if twice := [row for row, n in ids.items() if n > 1]:
        trial.wrong.append(f"{len(twice)} rows stand twice")


def check_runs(trial: Trial, site: Site) -> None:
    """The server tells a final state of every run of the trial and of all their task runs."""
    for run in runs_on(site.api_url, trial.lake):
        if run["state_type"] not in FINAL:
            trial.wrong.append(f"run {run['name']} {run['id']} is {run['state_name']}")
        asked = {"flow_runs": {"id": {"any_": [run["id"]]}}}
        tasks = httpx.post(f"{site.api_url}/task_runs/filter", json=asked, timeout=30).json()
        open_ = Counter(task["state_name"] for task in tasks if task["state_type"] not in FINAL)
        if open_:
            trial.wrong.append(f"task runs of {run['id']} ({run['state_name']}) without a final state: {dict(open_)}")


def check_nothing_left(trial: Trial, site: Site) -> None:
    """No process that the trial started lives on, and no folder of Ray's is left."""
    deadline_s = time.monotonic() + GONE_WITHIN_S
    while (left := processes_of(site.mark(trial.name))) and time.monotonic() < deadline_s:
        time.sleep(0.5)
    trial.wrong.extend(f"process {pid} is left: {command[:100]}" for pid, command in left.items())
    trial.wrong.extend(f"{path} is left" for path in (site.folder / "t").glob("vr-*"))
