"""The RayCluster: its nodes have room for all pods and these for the actors of its profile, and runs of its worker find
its Ray.
"""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.profile_config import ROLES, Profile, Resources, load_profile

KUBERNETES = Path(__file__).resolve().parents[2] / "infra/deploy/kubernetes"
GUIDE = (KUBERNETES.parents[2] / "docs/cluster.md").read_text()
PROFILE = KUBERNETES / "profiles" / "64-gpus.toml"
CPU, GPU = 0, 1
"""Places of the groups."""

Spec = dict[str, Any]


@pytest.fixture
def cluster() -> Spec:
    """A deep copy without the file's anchors, so that a change in one place is in one place."""
    spec: Spec = yaml.safe_load((KUBERNETES / "ray-cluster.yaml").read_text())["spec"]
    return unshared(spec)


def unshared(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: unshared(item) for key, item in value.items()}
    return [unshared(item) for item in value] if isinstance(value, list) else value


def resources_told(cluster: Spec) -> list[str]:
    """What Ray is told of each pod, against what Kubernetes gives it."""
    faults = []
    for group in cluster["workerGroupSpecs"]:
        given = group["template"]["spec"]["containers"][0]["resources"]
        for name, flag in (("cpu", "num-cpus"), ("nvidia.com/gpu", "num-gpus")):
            if given["requests"].get(name) != group["rayStartParams"].get(flag):
                faults.append(f"{group['groupName']}: Ray is told of other {name} than it has")
        if given["requests"].get("nvidia.com/gpu") != given["limits"].get("nvidia.com/gpu"):
            faults.append(f"{group['groupName']}: Kubernetes wants as many GPUs in limits as in requests")
    return faults


def unplaced(cluster: Spec, profile: Profile) -> list[str]:
    """Pools whose actors find no room, the first pod with room taken; Ray keeps other actors off GPU pods."""
    pods = [(group, nodes(group)) for group in cluster["workerGroupSpecs"]]
    faults = []
    for role in ROLES:
        needs = profile.batching(role)
        if not isinstance(needs, Resources):
            continue  # behind a chat server
        free = [
            node for group, own in pods for node in own if ("num-gpus" in group["rayStartParams"]) == (needs.gpus > 0)
        ]
        for number in range(needs.workers):
            node = next((it for it in free if it[0] >= needs.cpus and it[1] >= needs.gpus), None)
            if node is None:
                faults.append(f"{role}: room for {number} of {needs.workers}")
                break
            node[0] -= needs.cpus
            node[1] -= needs.gpus
    return faults


def nodes(group: Spec) -> list[list[float]]:
    """Free CPUs and GPUs of each pod."""
    params = group["rayStartParams"]
    return [[float(params["num-cpus"]), float(params.get("num-gpus", 0))] for _ in range(group["replicas"])]


@dataclass(frozen=True)
class Machine:
    """A node of Kubernetes: its label and what it has and has left, by resource; memory in GiB."""

    label: tuple[str, str]
    has: Mapping[str, float]
    left: dict[str, float]

    def takes(self, pod: Spec) -> bool:
        """Whether the scheduler may put it there."""
        is_here = all(item == self.label for item in pod.get("nodeSelector", {}).items())
        return is_here and all(self.left[name] >= asked for name, asked in requests(pod).items())

    @property
    def share_left(self) -> float:
        """By which Kubernetes' default scheduler chooses (NodeResourcesFit, LeastAllocated): of CPUs and memory."""
        return sum(self.left[name] / self.has[name] for name in ("cpu", "memory"))


def machines(guide: str) -> list[Machine]:
    """The nodes as the guide wants and labels them."""
    ((cpus, memory_gib),) = re.findall(r"of eight GPUs, with (\d+) CPUs and (\d+) GiB of memory each", guide)
    has = {"cpu": float(cpus), "memory": float(memory_gib), "nvidia.com/gpu": 8.0}
    labelled = re.findall(r"^kubectl label nodes ((?:\w+ )+)(\S+)=(\w+)$", guide, re.MULTILINE)
    return [Machine((key, value), has, dict(has)) for names, key, value in labelled for _ in names.split()]


def requests(pod: Spec) -> dict[str, float]:
    """What its containers ask for together."""
    of_all = [container["resources"]["requests"] for container in pod["containers"]]
    return {
        name: sum(float(asked.get(name, "0").removesuffix("Gi")) for asked in of_all)
        for name in ("cpu", "memory", "nvidia.com/gpu")
    }


def pods(cluster: Spec, deployments: Sequence[Spec]) -> list[Spec]:
    """Every pod that the manifests make, those with the fewest GPUs first."""
    makers = [(it["spec"]["replicas"], it["spec"]["template"]["spec"]) for it in deployments]
    makers += [(it.get("replicas", 1), it["template"]["spec"]) for it in ray_groups(cluster)]
    made = [pod for replicas, pod in makers for _ in range(replicas)]
    return sorted(made, key=lambda pod: requests(pod)["nvidia.com/gpu"])


def ray_groups(cluster: Spec) -> list[Spec]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pending(cluster: Spec, deployments: Sequence[Spec]) -> list[str]:
    """Pods that find no node, whether those that ask for little come first or last."""
    faults = []
    for order in (pods(cluster, deployments), pods(cluster, deployments)[::-1]):
        nodes = machines(GUIDE)
        for pod in order:
            free = [node for node in nodes if node.takes(pod)]
            if not free:
                faults.append(f"{pod['containers'][0]['name']}: no node takes it")
                continue
            chosen = max(free, key=lambda node: node.share_left)
            for name, asked in requests(pod).items():
                chosen.left[name] -= asked
    return faults


def keyless(cluster: Spec, profile: Profile) -> list[str]:
    """Containers in which agents work that lack a key of the profile's chat servers: the runs' own, and Ray's, where
    workers ask by themselves.
    """
    keys = {chat.api_key_env for role in ROLES for chat in profile.chats(role).values()}
    at_work = [cluster["headGroupSpec"]["template"]["spec"]["containers"][1]]
    at_work += [group["template"]["spec"]["containers"][0] for group in cluster["workerGroupSpecs"]]
    return [
        f"{container['name']}: no {key}"
        for container in at_work
        for key in keys - {variable["name"] for variable in container["env"]}
    ]


def unreached(cluster: Spec) -> list[str]:
    """What keeps the runs of the worker from Ray's node, which they find by its process and its sockets, or actors from
    the frames, which are where the run says, on every node."""
    head = cluster["headGroupSpec"]["template"]["spec"]
    faults = [] if head.get("shareProcessNamespace") else ["the worker does not see Ray's processes"]
    for container in head["containers"]:
        volumes = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        if volumes.get("/tmp/ray") != "ray":
            faults.append(f"{container['name']} lacks Ray's sockets")
    pods = [group["template"]["spec"] for group in cluster["workerGroupSpecs"]]
    at_work = [head["containers"][1], *(pod["containers"][0] for pod in pods)]
    seen = {container["name"]: paths(container) for container in at_work}
    faults += [f"{name} sees {found}" for name, found in seen.items() if found != paths(at_work[0])]
    return faults + [f"{paths(at_work[0])}: its cache is not on the node"] * ("cache" not in str(paths(at_work[0])))


def paths(container: Spec) -> dict[str, str]:
    """Volumes by where they are, and the cache folder."""
    (cache,) = (variable["value"] for variable in container["env"] if variable["name"] == "VIDEOREFER_CACHE")
    volumes = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    return volumes | {"VIDEOREFER_CACHE": f"{cache} on {volumes.get(cache)}"}


@pytest.fixture
def deployments() -> list[Spec]:
    """vLLM's and Prefect's, in that order."""
    found = [next(yaml.safe_load_all((KUBERNETES / f"{name}.yaml").read_text())) for name in ("vllm", "prefect")]
    assert [it["kind"] for it in found] == ["Deployment"] * 2
    return found


def test_all_actors_of_the_profile_find_room(cluster: Spec) -> None:
    assert resources_told(cluster) == []
    assert unplaced(cluster, load_profile(str(PROFILE))) == []


def test_its_pods_take_the_gpus_of_its_name(cluster: Spec, deployments: list[Spec]) -> None:
    assert sum(requests(pod)["nvidia.com/gpu"] for pod in pods(cluster, deployments)) == 64


def test_all_pods_find_a_node(cluster: Spec, deployments: list[Spec]) -> None:
    assert pending(cluster, deployments) == []


def test_without_a_label_to_keep_to_vllm_leaves_no_whole_node(cluster: Spec, deployments: list[Spec]) -> None:
    del deployments[0]["spec"]["template"]["spec"]["nodeSelector"]
    assert "ray-worker: no node takes it" in pending(cluster, deployments)


def test_without_a_label_to_keep_to_agents_take_vllms_nodes(cluster: Spec, deployments: list[Spec]) -> None:
    del cluster["workerGroupSpecs"][GPU]["template"]["spec"]["nodeSelector"]
    assert "vllm: no node takes it" in pending(cluster, deployments)


def test_agents_have_the_keys_of_chat_servers_wherever_they_work(cluster: Spec) -> None:
    profile = load_profile(str(PROFILE))
    assert keyless(cluster, profile) == []
    cluster["workerGroupSpecs"][GPU]["template"]["spec"]["containers"][0]["env"].pop(0)
    assert keyless(cluster, profile) == ["ray-worker: no VLLM_API_KEY"]


def test_runs_of_the_worker_find_its_ray_and_actors_their_files(cluster: Spec) -> None:
    assert unreached(cluster) == []


@pytest.mark.parametrize("group", [CPU, GPU])
def test_a_pod_too_few_is_found(cluster: Spec, group: int) -> None:
    cluster["workerGroupSpecs"][group]["replicas"] -= 1
    assert unplaced(cluster, load_profile(str(PROFILE)))


@pytest.mark.parametrize("flag", ["num-cpus", "num-gpus"])
def test_a_resource_that_ray_is_not_told_of_is_found(cluster: Spec, flag: str) -> None:
    cluster["workerGroupSpecs"][GPU]["rayStartParams"][flag] = "7"
    assert resources_told(cluster)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda it: it["headGroupSpec"]["template"]["spec"].pop("shareProcessNamespace"),
        lambda it: it["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"].clear(),
        lambda it: it["headGroupSpec"]["template"]["spec"]["containers"][1]["volumeMounts"].pop(0),
        lambda it: it["workerGroupSpecs"][GPU]["template"]["spec"]["containers"][0]["volumeMounts"].pop(),
        lambda it: it["workerGroupSpecs"][GPU]["template"]["spec"]["containers"][0]["env"][1].update(
            value="/tmp/cache"
        ),
    ],
    ids=["no processes", "no sockets in the head", "no sockets in the worker", "no profiles", "another cache"],
)
def test_what_keeps_parts_from_one_another_is_found(cluster: Spec, break_it: Callable[[Spec], object]) -> None:
    broken = copy.deepcopy(cluster)
    break_it(broken)
    assert unreached(broken)
