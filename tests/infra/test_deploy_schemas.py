"""The deployment files, held to the published schemas of what reads them.

Compose's is the Compose specification's, Kubernetes' its own of the oldest release that is meant and of the newest one
that there is. KubeRay's and kustomize's are in no package: for the objects of those two, the fields that are used are
below, after KubeRay 1.6 and kustomize 5, and a pod in a RayCluster is held to Kubernetes' schema like any other.
"""

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import kubernetes_validate
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ConfigDict, ValidationError

DEPLOY = Path(__file__).resolve().parents[2] / "infra" / "deploy"
RELEASES = ("1.30", kubernetes_validate.latest_version())
COMPOSE = Draft202012Validator(get_builtin_schema("vendor.compose-spec"))

Document = dict[str, Any]


class Object(BaseModel):
    """Fields by their names and nothing else; a number is no text, as in Kubernetes."""

    model_config = ConfigDict(extra="forbid", strict=True)


class AuthOptions(Object):
    mode: Literal["disabled", "token"]
    secretName: str


class HeadGroup(Object):
    rayStartParams: dict[str, str]
    template: Document


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


class RayCluster(Object):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Document
    spec: RayClusterSpec


class Image(Object):
    name: str
    newTag: str


class GeneratorOptions(Object):
    disableNameSuffixHash: bool


class SecretGenerator(Object):
    name: str
    envs: list[str]


class ConfigMapGenerator(Object):
    name: str
    files: list[str]


class Kustomization(Object):
    apiVersion: Literal["kustomize.config.k8s.io/v1beta1"]
    kind: Literal["Kustomization"]
    namespace: str
    resources: list[str]
    images: list[Image]
    generatorOptions: GeneratorOptions
    secretGenerator: list[SecretGenerator]
    configMapGenerator: list[ConfigMapGenerator]


QUANTITY = r"\d+(\.\d+)?(m|k|[KMGTPE]i?)?"
ALLOWED = {
    "spec.accessModes": "ReadWriteOnce|ReadOnlyMany|ReadWriteMany|ReadWriteOncePod",
    "spec.restartPolicy": "Always|OnFailure|Never",
    "strategy.type": "Recreate|RollingUpdate",
    "securityContext.fsGroupChangePolicy": "OnRootMismatch|Always",
    "emptyDir.medium": "Memory|",
    "ports.name": "[a-z0-9-]{1,15}",
    "httpGet.path": "/.*",
    "volumeMounts.mountPath": "/.*",
    **dict.fromkeys(["requests.cpu", "requests.memory", "requests.storage", "requests.nvidia.com/gpu"], QUANTITY),
    **dict.fromkeys(["limits.memory", "limits.nvidia.com/gpu", "emptyDir.sizeLimit"], QUANTITY),
}
"""Texts that Kubernetes looks into and its schema does not: parent and name of a field, to a pattern of the whole."""


def texts(value: Any, parent: str = "", name: str = "") -> Iterator[tuple[str, str]]:
    """Every text by parent and name of its field, lists opened."""
    match value:
        case dict():
            for key, item in value.items():
                yield from texts(item, name, key)
        case list():
            for item in value:
                yield from texts(item, parent, name)
        case str():
            yield f"{parent}.{name}", value


def compose_faults(found: Document) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in COMPOSE.iter_errors(found)]


def kubernetes_faults(found: Document) -> list[str]:
    faults = [
        f"{field}: {text}" for field, text in texts(found) if not re.fullmatch(ALLOWED.get(field, ".*"), text, re.S)
    ]
    match found["kind"]:
        case "Kustomization":
            return faults + misfits(Kustomization, found)
        case "RayCluster":
            own = misfits(RayCluster, found)
            return faults + (own or [fault for pod in ray_pods(found) for fault in schema_faults(pod)])
    return faults + schema_faults(found)


def ray_pods(cluster: Document) -> list[Document]:
    """The pods' templates as objects of Kubernetes', each with the metadata of the cluster."""
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    common = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": cluster["metadata"]}
    return [common | {"template": group["template"]} for group in groups]


def schema_faults(found: Document) -> list[str]:
    faults = []
    for release in RELEASES:
        try:
            kubernetes_validate.validate(found, release, strict=True)
        except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
            faults.append(f"Kubernetes {release}: {error.message}")
    return faults


def misfits(kind: type[Object], value: object) -> list[str]:
    try:
        kind.model_validate(value)
    except ValidationError as error:
        return [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
    return []


def compose(name: str) -> Document:
    found: Document = yaml.safe_load((DEPLOY / name).read_text())
    return found


def objects() -> dict[str, Document]:
    """By kind and name, a Kustomization by its kind alone."""
    manifests = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    found = [document for path in manifests for document in yaml.safe_load_all(path.read_text())]
    return {f"{it['kind']}/{it.get('metadata', {}).get('name', '')}": it for it in found}


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_reads_its_files(name: str) -> None:
    assert compose_faults(compose(name)) == []


@pytest.mark.parametrize("name", objects())
def test_kubernetes_reads_each_object(name: str) -> None:
    assert kubernetes_faults(objects()[name]) == []


def test_every_service_is_watched() -> None:
    for name in ("compose.yaml", "compose.gpu.yaml"):
        started = [service for service in compose(name)["services"].values() if "image" in service]
        assert started
        assert all({"healthcheck", "restart"} <= service.keys() for service in started)


@pytest.mark.parametrize(
    ("name", "break_it"),
    [
        ("compose.yaml", lambda it: it.update(service={})),
        ("compose.yaml", lambda it: it["services"]["engine"].update(restrat="always")),
        ("compose.yaml", lambda it: it["services"]["engine"].update(shm_size=[])),
        ("compose.yaml", lambda it: it["services"]["engine"]["depends_on"]["prefect"].update(condition="healthy")),
        ("compose.gpu.yaml", lambda it: it["services"]["vllm"]["deploy"]["resources"].update(reserved={})),
    ],
    ids=["a misspelt part", "a misspelt field", "a list for a text", "a condition that is none", "a misspelt resource"],
)
def test_a_fault_that_compose_would_find_is_found(name: str, break_it: Callable[[Document], object]) -> None:
    broken = copy.deepcopy(compose(name))
    break_it(broken)
    assert compose_faults(broken)


def pod(it: Document) -> Document:
    """Of a Deployment or Job, or of the head of a RayCluster."""
    spec: Document = it["spec"].get("headGroupSpec", it["spec"])["template"]["spec"]
    return spec


RAY, VLLM, CLAIM = "RayCluster/videorefer", "Deployment/videorefer-vllm", "PersistentVolumeClaim/videorefer-lake"
BREAKS: dict[str, tuple[str, Callable[[Document], object]]] = {
    "an unknown version": (VLLM, lambda it: it.update(apiVersion="apps/v1beta1")),
    "an unknown kind": (VLLM, lambda it: it.update(kind="Deployments")),
    "a misspelt field": (VLLM, lambda it: pod(it).update(container=[])),
    "no selector": (VLLM, lambda it: it["spec"].pop("selector")),
    "a number for a text": (VLLM, lambda it: pod(it)["containers"][0]["env"].append({"name": "A", "value": 1})),
    "a text for a number": ("Service/videorefer-vllm", lambda it: it["spec"]["ports"][0].update(port="8000")),
    "a misspelt field of a claim": (CLAIM, lambda it: it["spec"].update(accessmodes=["ReadWriteMany"])),
    "no access mode": (CLAIM, lambda it: it["spec"].update(accessModes=["ReadWriteAll"])),
    "no strategy": (VLLM, lambda it: it["spec"].update(strategy={"type": "Recreated"})),
    "no amount": (VLLM, lambda it: pod(it)["containers"][0]["resources"]["limits"].update(memory="48Gb")),
    "too long a name of a port": (VLLM, lambda it: pod(it)["containers"][0]["ports"][0].update(name="a" * 16)),
    "a mount that is no place": (RAY, lambda it: pod(it)["containers"][0]["volumeMounts"][0].update(mountPath="tmp")),
    "a misspelt field of a job": ("Job/videorefer-weights", lambda it: it["spec"].update(backOffLimit=3)),
    "an unknown version of KubeRay's": (RAY, lambda it: it.update(apiVersion="ray.io/v1alpha1")),
    "a number for a text of KubeRay's": (
        RAY,
        lambda it: it["spec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
    ),
    "a misspelt field of KubeRay's": (RAY, lambda it: it["spec"]["workerGroupSpecs"][0].update(maxReplica=4)),
    "a misspelt field in a pod of KubeRay's": (RAY, lambda it: pod(it).update(shareProcessNamespaces=True)),
    "a misspelt part of KubeRay's": (RAY, lambda it: it["spec"].update(headGroup=it["spec"].pop("headGroupSpec"))),
    "a misspelt label of KubeRay's": (RAY, lambda it: it["metadata"].update(label={})),
    "a misspelt field of kustomize's": ("Kustomization/", lambda it: it.update(secretGenerators=[])),
    "an unknown version of kustomize's": ("Kustomization/", lambda it: it.update(apiVersion="kustomize/v1")),
}


@pytest.mark.parametrize(("name", "break_it"), BREAKS.values(), ids=BREAKS)
def test_a_fault_that_kubernetes_would_find_is_found(name: str, break_it: Callable[[Document], object]) -> None:
    broken = copy.deepcopy(objects()[name])
    break_it(broken)
    assert kubernetes_faults(broken)


def test_every_pattern_meets_a_text() -> None:
    met = {field for found in objects().values() for field, _ in texts(found)}
    assert ALLOWED.keys() <= met
