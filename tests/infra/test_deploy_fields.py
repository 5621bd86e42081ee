"""The fields of the deployment files, held to the objects that Compose and Kubernetes read them as.

In the parts that are used, after the Compose specification, Kubernetes 1.30 and KubeRay 1.6; their published schemas
are in no package that is installed here. A field that is not below is unknown to these tests: look it up in the
specification and add it.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

DEPLOY = Path(__file__).resolve().parents[2] / "infra" / "deploy"


class Object(BaseModel):
    """Fields by their names and nothing else; a number is no text, as in Kubernetes."""

    model_config = ConfigDict(extra="forbid", strict=True)


class HealthCheck(Object):
    test: list[str] = Field(min_length=2)
    interval: str
    timeout: str
    retries: int
    start_period: str = "0s"


class Dependency(Object):
    condition: Literal["service_started", "service_healthy", "service_completed_successfully"]


class Build(Object):
    context: str
    dockerfile: str


class Device(Object):
    driver: str
    count: int
    capabilities: list[str]


class SecretMount(Object):
    source: str
    target: str
    uid: str
    gid: str
    mode: int


class ServiceDeploy(Object):
    resources: dict[Literal["reservations"], dict[Literal["devices"], list[Device]]]


class ComposeService(Object):
    image: str
    build: Build | None = None
    init: bool = False
    restart: Literal["unless-stopped"]
    entrypoint: list[str] = []
    command: list[str] = []
    environment: dict[str, str] = {}
    secrets: list[SecretMount] = []
    shm_size: str = ""
    ipc: Literal["host", ""] = ""
    volumes: list[str] = []
    ports: list[str] = []
    depends_on: dict[str, Dependency] = {}
    deploy: ServiceDeploy | None = None
    healthcheck: HealthCheck
    stop_grace_period: str = "10s"


class ComposeSecret(Object):
    environment: str


class Compose(Object):
    name: str
    services: dict[str, ComposeService]
    secrets: dict[str, ComposeSecret]
    volumes: dict[str, None]


class KeyRef(Object):
    name: str
    key: str


class ValueFrom(Object):
    secretKeyRef: KeyRef


class Variable(Object):
    name: str
    value: str | None = None
    valueFrom: ValueFrom | None = None


class ContainerPort(Object):
    name: str = Field(max_length=15, pattern="^[a-z0-9-]+$")
    containerPort: int = Field(ge=1, le=65535)


class HttpGet(Object):
    path: str = Field(pattern="^/")
    port: str


class Probe(Object):
    httpGet: HttpGet
    periodSeconds: int = 10
    timeoutSeconds: int = 1
    failureThreshold: int = 3


class ContainerResources(Object):
    requests: dict[Literal["cpu", "memory", "nvidia.com/gpu"], str]
    limits: dict[Literal["cpu", "memory", "nvidia.com/gpu"], str]


class Mount(Object):
    name: str
    mountPath: str = Field(pattern="^/")
    subPath: str = ""
    readOnly: bool = False


class Container(Object):
    name: str
    image: str
    command: list[str] = []
    args: list[str] = []
    workingDir: str = ""
    env: list[Variable] = []
    ports: list[ContainerPort] = []
    startupProbe: Probe | None = None
    readinessProbe: Probe | None = None
    livenessProbe: Probe | None = None
    resources: ContainerResources
    volumeMounts: list[Mount] = []


class EmptyDir(Object):
    medium: Literal["", "Memory"] = ""
    sizeLimit: str = ""


class Claim(Object):
    claimName: str


class Name(Object):
    name: str


class Volume(Object):
    name: str
    emptyDir: EmptyDir | None = None
    persistentVolumeClaim: Claim | None = None
    configMap: Name | None = None


class PodSecurity(Object):
    runAsNonRoot: bool
    runAsUser: int
    runAsGroup: int
    fsGroup: int
    fsGroupChangePolicy: Literal["OnRootMismatch", "Always"] = "Always"


class Pod(Object):
    automountServiceAccountToken: bool
    enableServiceLinks: bool = True
    shareProcessNamespace: bool = False
    terminationGracePeriodSeconds: int = 30
    restartPolicy: Literal["Always", "OnFailure", "Never"] = "Always"
    securityContext: PodSecurity | None = None
    containers: list[Container]
    volumes: list[Volume] = []


class Labels(Object):
    labels: dict[str, str] = {}


class Template(Object):
    metadata: Labels = Labels()
    spec: Pod


class Selector(Object):
    matchLabels: dict[str, str]


class Strategy(Object):
    type: Literal["Recreate", "RollingUpdate"]


class DeploymentSpec(Object):
    replicas: int
    strategy: Strategy = Strategy(type="RollingUpdate")
    selector: Selector
    template: Template


class JobSpec(Object):
    backoffLimit: int
    ttlSecondsAfterFinished: int
    template: Template


class ServicePort(Object):
    name: str
    port: int
    targetPort: str


class ServiceSpec(Object):
    selector: dict[str, str]
    ports: list[ServicePort]


class ClaimSpec(Object):
    accessModes: list[Literal["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany"]]
    resources: dict[Literal["requests"], dict[Literal["storage"], str]]


class AuthOptions(Object):
    mode: Literal["token"]
    secretName: str


class HeadGroup(Object):
    rayStartParams: dict[str, str]
    template: Template


class WorkerGroup(HeadGroup):
    groupName: str
    replicas: int
    minReplicas: int
    maxReplicas: int


class RayClusterSpec(Object):
    rayVersion: str
    authOptions: AuthOptions
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]


SPECS: dict[tuple[str, str], type[Object] | None] = {
    ("v1", "Namespace"): None,
    ("v1", "PersistentVolumeClaim"): ClaimSpec,
    ("v1", "Service"): ServiceSpec,
    ("apps/v1", "Deployment"): DeploymentSpec,
    ("batch/v1", "Job"): JobSpec,
    ("ray.io/v1", "RayCluster"): RayClusterSpec,
}


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two files as Compose puts them together: mappings by key, all else replaced."""
    both = {key: merged(one[key], other[key]) for key in one.keys() & other.keys() if isinstance(one[key], dict)}
    return one | other | both


def compose() -> dict[str, Any]:
    files = [yaml.safe_load((DEPLOY / name).read_text()) for name in ("compose.yaml", "compose.gpu.yaml")]
    return merged(*({key: value for key, value in found.items() if not key.startswith("x-")} for found in files))


def objects() -> dict[str, dict[str, Any]]:
    manifests = sorted(set((DEPLOY / "kubernetes").glob("*.yaml")) - {DEPLOY / "kubernetes/kustomization.yaml"})
    found = [document for path in manifests for document in yaml.safe_load_all(path.read_text())]
    return {f"{it['kind']}/{it['metadata']['name']}": it for it in found}


def misfits(kind: type[Object], value: object) -> list[str]:
    try:
        kind.model_validate(value)
    except ValidationError as error:
        return [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
    return []


def faults(found: dict[str, Any]) -> list[str]:
    """Of one Kubernetes object."""
    what = (found["apiVersion"], found["kind"])
    if what not in SPECS or found.keys() - {"spec"} != {"apiVersion", "kind", "metadata"}:
        return [f"{what}: no such object"]
    kind = SPECS[what]
    return misfits(kind, found.get("spec")) if kind else []


def test_compose_reads_its_files() -> None:
    assert misfits(Compose, compose()) == []


@pytest.mark.parametrize("name", objects())
def test_kubernetes_reads_each_object(name: str) -> None:
    assert faults(objects()[name]) == []


@pytest.mark.parametrize(
    "break_it",
    [
        lambda engine: engine.update(restrat="always"),
        lambda engine: engine.pop("healthcheck"),
        lambda engine: engine["environment"].update(PREFECT_WORKER_QUERY_SECONDS=5),
        lambda engine: engine["depends_on"]["prefect"].update(condition="healthy"),
    ],
    ids=["a misspelt field", "no health check", "a number for a text", "a condition that is none"],
)
def test_a_fault_in_a_service_is_found(break_it: Callable[[dict[str, Any]], object]) -> None:
    broken = copy.deepcopy(compose())
    break_it(broken["services"]["engine"])
    assert misfits(Compose, broken)


@pytest.mark.parametrize(
    ("name", "break_it"),
    [
        ("RayCluster/videorefer", lambda it: it.update(apiVersion="ray.io/v1alpha1")),
        ("RayCluster/videorefer", lambda it: it["spec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0})),
        ("Deployment/videorefer-vllm", lambda it: it["spec"]["template"]["spec"].update(container=[])),
        ("Deployment/videorefer-vllm", lambda it: it["spec"].pop("selector")),
        ("Service/videorefer-vllm", lambda it: it["spec"]["ports"][0].update(port="8000")),
        ("PersistentVolumeClaim/videorefer-lake", lambda it: it["spec"].update(accessModes=["ReadWriteAll"])),
    ],
    ids=["an old version", "a number for a text", "a misspelt field", "no selector", "a text for a number", "no mode"],
)
def test_a_fault_in_an_object_is_found(name: str, break_it: Callable[[dict[str, Any]], object]) -> None:
    broken = copy.deepcopy(objects()[name])
    break_it(broken)
    assert faults(broken)
