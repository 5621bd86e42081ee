"""Builds that are killed at random moments, for real: `make chaos`, `TRIALS=5 CHAOS_SEED=7 make chaos`.

Each trial starts a build of a few synthetic clips, does something bad to it at a random moment, perhaps a second time,
then runs the same command until it ends, and checks: exit 0; shards, tracks and quarantine byte by byte those of an
undisturbed build; no row twice; nothing that was committed made again; every run and task run in a final state on the
server; no process and no folder left. It ends with a table, and keeps the folder of a trial that failed.
"""

import json
import os
import random
import re
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

from kills import KINDS, processes_of
from trial import Site, Trial, draw, end, keys_by_part, run_trial, start

from flows.doctor import fetch_weights
from infra.settings import settings
from infra.synthetic import write_clips

NUM_CLIPS = 8
LOG_LINES = 25


def main() -> int:
    num_trials = int(os.environ.get("TRIALS", "50"))
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(10**6))
    print(f"CHAOS_SEED={seed} TRIALS={num_trials}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # tidies up and prints the table all the same
    rng = random.Random(seed)
    site = make_site(seed)
    trials: list[Trial] = []
    try:
        site.up()
        reference = Trial("reference", (), (), True, site.folder / "reference")
        reference.folder.mkdir()
        began_s = time.monotonic()
        if end(reference, start(reference, site), "last") != 0:
            raise SystemExit(f"the undisturbed build failed: {site.folder}/reference-last.log")
        whole_s = time.monotonic() - began_s
        num_parts = len(keys_by_part(reference.lake))
        print(f"undisturbed build: {whole_s:.1f} s, {num_parts} parts, in {site.folder}", flush=True)
        for number, kind in enumerate(deck(num_trials, rng)):
            trial = draw(number, kind, rng, num_parts, site.folder)
            trials.append(trial)
            run_trial(trial, site, reference.lake)
            tell(trial, site)
    finally:
        site.down()
        for pid in processes_of(site.mark("")):  # after an interrupt, say
            os.kill(pid, signal.SIGKILL)
        print_table(trials)
        if not any(trial.wrong for trial in trials):
            shutil.rmtree(site.folder, ignore_errors=True)
    return int(any(trial.wrong for trial in trials))


def make_site(seed: int) -> Site:
    """A short folder: Ray's sockets lie below it, and their paths must stay short."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
    fetch_weights("painted", say=print)
    for cache in ("cache", "cache-alone"):
        (folder / cache).mkdir()
        (folder / cache / "files").symlink_to(settings().cache_dir / "files")
    (folder / "t").mkdir()
    source, profile = folder / "rows.jsonl", folder / "chaos.toml"
    source.write_text("\n".join(map(json.dumps, write_clips(folder / "clips", NUM_CLIPS, seed))))
    # small batches and units, for many moments to be hit at; tries enough for a clip that two kills meet
    text = (Path(__file__).parents[2] / "flows" / "profiles" / "painted.toml").read_text()
    text = re.sub(r"clips_per_unit = \d+", "clips_per_unit = 3", text)
    profile.write_text(re.sub(r"batch_size = \d+", "batch_size = 2, max_attempts = 5", text))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return Site(folder, source, profile, port)


def deck(num_trials: int, rng: random.Random) -> list[str]:
    """Kinds in random order, each about as often as the others."""
    kinds: list[str] = []
    while len(kinds) < num_trials:
        kinds += rng.sample(KINDS, len(KINDS))
    return kinds[:num_trials]


def tell(trial: Trial, site: Site) -> None:
    """What happened in a trial; where something was wrong, the ends of its logs."""
    server = "lasting server" if trial.has_lasting_server else "temporary server"
    outcome = "FAILED" if trial.wrong else "passed"
    print(f"{trial.name} {outcome} ({server}; {'; '.join(trial.did)}; resumed in {trial.resume_s:.0f} s)", flush=True)
    for wrong in trial.wrong:
        print(f"   {wrong}", flush=True)
    if not trial.wrong:
        shutil.rmtree(trial.folder, ignore_errors=True)
        return
    for log in sorted(site.folder.glob(f"{trial.folder.name}-*.log")):
        lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        print("\n".join([f"   --- {log}", *(f"   {line[:200]}" for line in lines)]), flush=True)


def print_table(trials: list[Trial]) -> None:
    """Per kind, of the first kill: how many trials, how many passed, how long the last run took."""
    print(f"{'kind':<12} {'n':>3} {'passed':>6} {'median s to resume':>19}")
    for kind in KINDS:
        of_kind = [trial for trial in trials if trial.kinds[0] == kind]
        if of_kind:
            median_s = statistics.median(trial.resume_s for trial in of_kind)
            passed = sum(not trial.wrong for trial in of_kind)
            print(f"{kind:<12} {len(of_kind):>3} {passed:>6} {median_s:>19.1f}")
    print(f"{'all':<12} {len(trials):>3} {sum(not trial.wrong for trial in trials):>6}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
