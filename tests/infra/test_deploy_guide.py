"""The command lines of docs/cluster.md, walked through with the files in hand: each goes to a service, container, port
and file that there is, finds its paths mounted there, and joins the Ray that has the GPUs.

That the programs know the flags is held in test_deploy_files.
"""

import itertools
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "infra/deploy"
KUBERNETES = DEPLOY / "kubernetes"
GUIDE = (ROOT / "docs/cluster.md").read_text()
ON_RAY = ("build", "deploy", "doctor", "plan")
"""Commands that work on Ray, or look at it."""
WRITTEN = ("--lake", "--out")
READ = ("--source", "--root", "--profile")


def loaded(path: Path) -> list[dict[str, Any]]:
    return [found for found in yaml.safe_load_all(path.read_text()) if found]


(RAY_CLUSTER,) = loaded(KUBERNETES / "ray-cluster.yaml")
(KUSTOMIZATION,) = loaded(KUBERNETES / "kustomization.yaml")
OBJECTS = [found for path in sorted(KUBERNETES.glob("*.yaml")) for found in loaded(path)]


@dataclass(frozen=True)
class Container:
    """Where a command runs: what is mounted, and whether it may be written."""

    mounts: dict[str, bool]
    profiles: set[str]

    def faults(self, words: list[str]) -> Iterator[str]:
        """What a command of ours would not find there."""
        if words[0] != "videorefer":
            return
        options = dict(itertools.pairwise(words))
        if words[1] in ON_RAY and options.get("--ray") != "auto":
            yield "joins no Ray that has the GPUs: --ray auto"
        for option in (*WRITTEN, *READ):
            path = options.get(option, "")
            if path.startswith("/") and (why := self.lacks(path, option in WRITTEN)):
                yield f"{option} {path}: {why}"

    def lacks(self, path: str, is_written: bool) -> str:
        mount = next((it for it in self.mounts if path == it or path.startswith(f"{it}/")), None)
        if mount is None:
            return "nothing is mounted there"
        if is_written and not self.mounts[mount]:
            return "cannot be written"
        return "no such profile" if mount == "/config" and Path(path).name not in self.profiles else ""


def compose_engine() -> Container:
    volumes = [
        volume
        for name in ("compose.yaml", "compose.gpu.yaml")
        for volume in loaded(DEPLOY / name)[0]["services"]["engine"].get("volumes", [])
    ]
    found = [re.search(r":(/[^:]*)(:ro)?$", volume) for volume in volumes]
    mounts = {match[1]: not match[2] for match in found if match}
    assert len(mounts) == len(volumes)
    return Container(mounts, {path.name for path in (DEPLOY / "profiles").iterdir()})


def of_head(name: str) -> Container | None:
    containers = RAY_CLUSTER["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    found = next((it for it in containers if it["name"] == name), None)
    if found is None:
        return None
    mounts = {it["mountPath"]: not it.get("readOnly", False) for it in found["volumeMounts"]}
    return Container(mounts, {Path(name).name for name in KUSTOMIZATION["configMapGenerator"][0]["files"]})


def service_ports() -> dict[str, set[int]]:
    """Of all services, KubeRay's of the head too, whose ports are those of the head's first container."""
    found = {
        it["metadata"]["name"]: {p["port"] for p in it["spec"]["ports"]} for it in OBJECTS if it["kind"] == "Service"
    }
    head = RAY_CLUSTER["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    return found | {head_service(): {port["containerPort"] for port in head["ports"]}}


def head_service() -> str:
    return f"{RAY_CLUSTER['metadata']['name']}-head-svc"


def lines(guide: str) -> Iterator[list[str]]:
    """The words of each command in the guide's shell blocks."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", guide, re.DOTALL | re.MULTILINE):
        yield from (
            words for line in block.splitlines() if not language and (words := shlex.split(line, comments=True))
        )


def faults(guide: str) -> list[str]:
    """Every line that would not do what it is there for; paths of files count from the root, or from the folder of the
    Compose files once the guide goes there."""
    found = []
    for words in lines(guide):
        match words:
            case ["kubectl", "--namespace", namespace, *rest]:
                found += [f"{namespace}: no such namespace"] * (namespace != KUSTOMIZATION["namespace"])
                found += of_kubectl(rest)
            case ["kubectl", *rest]:
                found += of_kubectl(rest)
            case ["docker", "compose", "exec", service, *rest]:
                found += [f"{service}: no such service"] * (service != "engine")
                found += compose_engine().faults(rest)
            case ["docker", "build", *rest]:
                named = [rest[at + 1] for at, word in enumerate(rest) if word in ("--file", "<")]
                found += [f"{name}: no such file" for name in named if not (ROOT / name).is_file()]
            case ["cp", source, *_]:
                found += [f"{source}: no such file"] * (not any((it / source).is_file() for it in (ROOT, DEPLOY)))
            case ["cd", folder]:
                found += [f"{folder}: no such folder"] * (not (ROOT / folder).is_dir())
            case ["docker", "compose", "up", *_] | ["hf", "download", *_]:
                pass
            case _:
                found.append(f"{shlex.join(words)}: runs in no container, and nowhere else are its paths")
    return found


def of_kubectl(words: list[str]) -> list[str]:
    match words:
        case ["exec", *options, target] if "--" not in words:
            return [f"{shlex.join(options)} {target}: runs nothing"]
        case ["exec", *_]:
            at = words.index("--")
            options, command = words[:at], words[at + 1 :]
            container = of_head(options[options.index("--container") + 1])
            if f"service/{head_service()}" not in options or container is None:
                return [f"{shlex.join(options)}: no such container"]
            return list(container.faults(command))
        case ["port-forward", target, ports]:
            own = service_ports().get(target.removeprefix("service/"), set())
            return [] if int(ports.partition(":")[2]) in own else [f"{target} {ports}: nobody listens there"]
        case ["apply", "--kustomize", folder]:
            return [] if (ROOT / folder / "kustomization.yaml").is_file() else [f"{folder}: no kustomization"]
        case ["apply", *options]:
            named = options[1::2]
            return [f"{name}: no such file" for name in named if not (ROOT / name).is_file()]
        case ["wait", *_, target]:
            jobs = {f"job/{it['metadata']['name']}" for it in OBJECTS if it["kind"] == "Job"}
            return [] if target in jobs else [f"{target}: no such Job"]
        case ["label", "nodes", *_] | ["get", *_]:
            return []
    return [f"kubectl {shlex.join(words)}: not known here"]


def applied(guide: str) -> list[str]:
    """What `kubectl apply` takes, in the order of the guide, and `wait` for its waits."""
    found = []
    for words in lines(guide):
        if words[0] == "kubectl" and "apply" in words:
            found += [Path(name).name for name in words[words.index("apply") + 2 :: 2]]
        elif words[0] == "kubectl" and "wait" in words:
            found.append("wait")
    return found


def needed_before(guide: str) -> list[str]:
    """The order of the guide, against what each step wants to be there."""
    order = applied(guide)
    wanted = [
        ("namespace.yaml", "volumes.yaml"),
        ("volumes.yaml", "wait"),
        ("weights-job.yaml", "wait"),
        ("wait", "kubernetes"),
    ]
    return [f"{first} comes not before {then}" for first, then in wanted if order.index(first) > order.index(then)]


def test_every_line_goes_where_it_is_to_work() -> None:
    assert len(list(lines(GUIDE))) > 20
    assert faults(GUIDE) == []


def test_weights_are_fetched_before_pods_mount_their_folder() -> None:
    assert needed_before(GUIDE) == []


EXEC = "kubectl --namespace videorefer exec --stdin --tty service/videorefer-head-svc --container worker -- "
BREAKS: dict[str, Callable[[str], str]] = {
    "a plan outside": lambda guide: guide.replace(f"{EXEC}videorefer plan", "videorefer plan"),
    "a plan on a Ray of its own": lambda guide: re.sub("(videorefer plan .*) --ray auto", r"\1", guide),
    "a doctor who looks here": lambda guide: re.sub("(videorefer doctor .*) --ray auto", r"\1", guide),
    "from outside": lambda guide: guide.replace(
        f"{EXEC}videorefer deploy", "PREFECT_API_URL=http://x videorefer deploy"
    ),
    "in the head": lambda guide: guide.replace("--container worker", "--container ray"),
    "another service": lambda guide: guide.replace("service/videorefer-head-svc --c", "service/videorefer-head --c"),
    "another port": lambda guide: guide.replace("videorefer-head-svc 8265:8265", "videorefer-head-svc 8265:8266"),
    "another namespace": lambda guide: guide.replace("--namespace videorefer get", "--namespace default get"),
    "another profile": lambda guide: guide.replace("/config/64-gpus.toml", "/config/one-gpu.toml"),
    "another mount": lambda guide: guide.replace("--source /videos", "--source /data/videos"),
    "a mount that is read only": lambda guide: guide.replace("--out /lake/models", "--out /models/new"),
    "another Job": lambda guide: guide.replace("job/videorefer-weights", "job/weights"),
    "another manifest": lambda guide: guide.replace("kubernetes/volumes.yaml", "kubernetes/claims.yaml"),
}


@pytest.mark.parametrize("break_it", BREAKS.values(), ids=BREAKS)
def test_a_line_that_goes_wrong_is_found(break_it: Callable[[str], str]) -> None:
    broken = break_it(GUIDE)
    assert broken != GUIDE
    assert faults(broken)


def test_pods_before_weights_are_found() -> None:
    pods = "kubectl apply --kustomize infra/deploy/kubernetes\n"
    first = "kubectl apply --filename infra/deploy/kubernetes/namespace.yaml\n"
    assert needed_before(GUIDE.replace(pods, "").replace(first, first + pods))
