"""A build's metrics are on the page of a real Ray's node, and the dashboard asks for those that are."""

import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families
from ray.dashboard.modules.reporter.reporter_agent import GPU_TAG_KEYS, METRICS_GAUGES, NODE_TAG_KEYS

from flows import metrics
from flows.metrics import COUNTERS, GAUGES, AgentMetrics
from flows.profile_config import ROLES, Role
from flows.progress import BuildProgress
from infra.ray_cluster import start_ray
from infra.token_count import TokenCount

DASHBOARD = Path(__file__).parents[2] / "infra" / "grafana" / "videorefer-agents.json"
WORKERS = dict.fromkeys(ROLES, 1) | {"segmenter": 2}
FORGOTTEN_S = 4.0
"""After which this file's Ray has forgotten a gauge that nobody set."""

Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]
"""By the metric's name and its labels, those left out that Ray adds."""


def scrape() -> Values:
    """Ours of what the page of Ray's node holds."""
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=5.0) as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    own = ("agent", "kind", "lake", "outcome", "profile", "state")
    return {
        (sample.name, tuple(sorted((k, v) for k, v in sample.labels.items() if k in own))): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("ray_videorefer_") and not sample.name.endswith("_created")
    }


def scrape_until(is_there: Callable[[Values], bool], within_s: float = 40.0) -> Values:
    deadline_s = time.monotonic() + within_s
    while not is_there(values := scrape()):
        assert time.monotonic() < deadline_s, values
        time.sleep(0.5)
    return values


def of(role: Role, name: str, **label: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    labels = {"agent": role, "lake": "r1", "profile": "tiny"} | label
    return f"ray_videorefer_{name}", tuple(sorted(labels.items()))


def test_without_work_there_is_no_ray_and_none_is_started() -> None:
    assert not ray.is_initialized()
    with AgentMetrics("r0", "tiny", lambda role: 0) as sink:
        BuildProgress(3, WORKERS, (sink,)).add("analyzer", done=3, cached=3)
    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def hasty_ray() -> Iterator[None]:
    """A Ray that reports every second, in place of ten, and forgets a gauge after two; metrics keep step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        patch.setattr(metrics, "SET_EVERY_S", 0.4)
        with start_ray(num_cpus=1):
            yield


@pytest.fixture(scope="module")
def pages(hasty_ray: None) -> tuple[Values, Values]:
    """What the page held at two moments of a run, the second after more work."""
    with AgentMetrics("r1", "tiny", lambda role: int(role == "segmenter")) as sink:
        counts = BuildProgress(10, WORKERS, (sink,))
        counts.add("segmenter", done=3, cached=3, failed=1, failed_before=1)
        counts.add("segmenter", done=1, skipped=1)
        counts.begin("segmenter")
        time.sleep(1.0)
        asked = TokenCount(requests=2, prompt_tokens=70, completion_tokens=9)
        counts.add("segmenter", done=4, failed=1, kept=6, dropped=2, busy_s=1.5, tokens=asked)
        kept = of("segmenter", "records_total", outcome="kept")
        first = scrape_until(lambda values: kept in values)
        counts.add("segmenter", done=1, kept=3, busy_s=0.5)
        return first, scrape_until(lambda values: values[kept] != first[kept])


def test_every_clip_is_in_one_state_and_work_is_counted(pages: tuple[Values, Values]) -> None:
    for values, waiting, done, kept, busy_s in ((pages[0], 2, 3, 6, 1.5), (pages[1], 1, 4, 9, 2.0)):
        states = {"waiting": waiting, "done": done, "cached": 2, "failed": 2, "skipped": 1}
        assert {state: values[of("segmenter", "clips", state=state)] for state in states} == states
        assert values[of("segmenter", "clips_worked_total", outcome="done")] == done
        assert values[of("segmenter", "clips_worked_total", outcome="failed")] == 1
        assert values[of("segmenter", "records_total", outcome="kept")] == kept
        assert values[of("segmenter", "records_total", outcome="dropped")] == 2
        assert values[of("segmenter", "busy_seconds_total")] == busy_s
        assert values[of("segmenter", "lost_workers_total")] == 1
        assert values[of("segmenter", "workers")] == 2
        assert values[of("segmenter", "chat_tokens_total", kind="prompt")] == 70
        assert values[of("segmenter", "chat_tokens_total", kind="completion")] == 9
        assert of("analyzer", "chat_tokens_total", kind="prompt") not in values  # it asks no server
    assert [pages[1][of(role, "clips", state="waiting")] for role in ROLES if role != "segmenter"] == [10] * 4
    assert of("refiner", "remaining_seconds") not in pages[1]  # it has not begun


def test_rate_time_left_and_busy_share_agree_with_the_counts(pages: tuple[Values, Values]) -> None:
    values = pages[1]
    elapsed_s = 5 / values[of("segmenter", "clips_per_second")]  # four clips, then one
    assert elapsed_s > 1.0
    assert values[of("segmenter", "remaining_seconds")] == pytest.approx(elapsed_s / 5)
    assert values[of("segmenter", "busy_ratio")] == pytest.approx(2.0 / (2 * elapsed_s))


def test_the_state_of_a_run_stays_on_the_page_while_it_lasts_and_goes_then(hasty_ray: None) -> None:
    with AgentMetrics("r2", "tiny", lambda role: 0) as sink:
        BuildProgress(10, WORKERS, (sink,)).add("analyzer", done=1, kept=2)
        state = of("analyzer", "clips", state="waiting", lake="r2")
        work = of("analyzer", "records_total", outcome="kept", lake="r2")
        scrape_until(lambda values: state in values)
        time.sleep(FORGOTTEN_S)
        assert scrape()[state] == 9
    assert scrape_until(lambda values: state not in values)[work] == 2


@pytest.fixture(scope="module")
def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions(panels: list[dict[str, Any]]) -> list[str]:
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_every_expression_of_the_dashboard_is_promql(panels: list[dict[str, Any]]) -> None:
    assert len(expressions(panels)) >= len(panels)
    for expression in expressions(panels):
        promql_parser.parse(expression)


def test_the_dashboard_shows_all_of_our_metrics_and_none_that_is_not_on_the_page(
    panels: list[dict[str, Any]], pages: tuple[Values, Values]
) -> None:
    asked = set(re.findall(r"\bray_videorefer_\w+", " ".join(expressions(panels))))
    assert asked == {name for name, _ in pages[1]} == {f"ray_{metric.name}" for metric in (*GAUGES, *COUNTERS)}


def test_the_dashboard_tells_apart_by_labels_that_the_metrics_have(
    panels: list[dict[str, Any]], pages: tuple[Values, Values]
) -> None:
    labels = {name: {key for key, _ in pairs} for name, pairs in pages[1]}
    labels |= {f"ray_{name}": {*NODE_TAG_KEYS, *GPU_TAG_KEYS} for name in METRICS_GAUGES}
    for expression in expressions(panels):
        groups = {label for inside in re.findall(r"by \(([^)]*)\)", expression) for label in inside.split(", ")}
        chosen = set(re.findall(r"(\w+)=", expression))
        names = re.findall(r"\bray_\w+", expression)
        assert names
        for name in names:
            assert (chosen & {"lake"}) == ({"lake"} if "videorefer" in name else set())
            assert groups | (chosen & {"lake"}) <= labels[name]


def test_panels_say_what_they_show_and_lie_side_by_side(panels: list[dict[str, Any]]) -> None:
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
    places = [panel["gridPos"] for panel in panels]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below


def test_the_dashboard_asks_which_prometheus_and_which_lake(panels: list[dict[str, Any]]) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["DS_PROMETHEUS"]["type"] == "datasource"
    assert variables["lake"]["definition"] == "label_values(ray_videorefer_clips, lake)"
    sources = {panel["datasource"]["uid"] for panel in panels}
    sources |= {target["datasource"]["uid"] for panel in panels for target in panel["targets"]}
    assert sources | {variables["lake"]["datasource"]["uid"]} == {"${DS_PROMETHEUS}"}
