"""The deployment files, held to what they deploy: each name, port, flag, variable and version in them must exist.

Docker, Kubernetes and a GPU are not at hand here; what the files say of this package, Prefect, Ray and one another is.
"""

import copy
import itertools
import re
import shlex
import tomllib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import click
import pytest
import ray._raylet
import typer.main
import yaml
from cyclopts.exceptions import CycloptsError
from packaging.specifiers import SpecifierSet
from prefect.cli._app import _app as prefect_cli
from prefect.settings.legacy import _get_settings_fields
from prefect.settings.models.root import Settings as PrefectSettings
from typer._click.exceptions import ClickException as TyperException  # its own copy of click's

from flows.cli import app
from flows.local_ray import DASHBOARD_PORT, METRICS_PORT
from flows.profile_config import ROLES, Profile, load_profile
from flows.server import HEARTBEAT_S
from flows.work_pool import POOL
from flows.worker import ASK_EVERY_S
from infra.ray_cluster import OBJECT_STORE_BYTES
from infra.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "infra" / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
GUIDE = ROOT / "docs" / "cluster.md"
PROFILES = {"one-gpu": DEPLOY / "profiles/one-gpu.toml", "64-gpus": KUBERNETES / "profiles/64-gpus.toml"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())


def env_keys(text: str) -> set[str]:
    return {line.partition("=")[0] for line in text.splitlines() if line and not line.startswith("#")}


@dataclass
class Files:
    """The files as they are parsed; `gpu` is compose.gpu.yaml, `objects` the Kubernetes documents."""

    compose: dict[str, Any]
    gpu: dict[str, Any]
    objects: list[dict[str, Any]]
    kustomization: dict[str, Any]
    compose_env: set[str]
    secret_keys: set[str]
    dockerfile: str
    vllm_dockerfile: str
    guide: str
    profiles: dict[str, Profile]

    @classmethod
    def read(cls) -> Self:
        manifests = sorted(set(KUBERNETES.glob("*.yaml")) - {KUBERNETES / "kustomization.yaml"})
        return cls(
            compose=yaml.safe_load((DEPLOY / "compose.yaml").read_text()),
            gpu=yaml.safe_load((DEPLOY / "compose.gpu.yaml").read_text()),
            objects=[found for path in manifests for found in yaml.safe_load_all(path.read_text())],
            kustomization=yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text()),
            compose_env=env_keys((DEPLOY / "env.example").read_text()),
            secret_keys=env_keys((KUBERNETES / "secrets.env.example").read_text()),
            dockerfile=(DEPLOY / "engine.Dockerfile").read_text(),
            vllm_dockerfile=(DEPLOY / "vllm.Dockerfile").read_text(),
            guide=GUIDE.read_text(),
            profiles={name: load_profile(str(path)) for name, path in PROFILES.items()},
        )

    @property
    def services(self) -> dict[str, dict[str, Any]]:
        """Of both compose files, merged as Compose does: mappings by key, volumes joined, all else replaced."""
        return merged(self.compose["services"], self.gpu["services"])

    def of_kind(self, kind: str) -> dict[str, dict[str, Any]]:
        return {found["metadata"]["name"]: found for found in self.objects if found["kind"] == kind}

    @property
    def cluster(self) -> dict[str, Any]:
        (found,) = self.of_kind("RayCluster").values()
        spec: dict[str, Any] = found["spec"]
        return spec

    @property
    def ray_groups(self) -> list[dict[str, Any]]:
        return [self.cluster["headGroupSpec"], *self.cluster["workerGroupSpecs"]]

    @property
    def pods(self) -> dict[str, dict[str, Any]]:
        """Each pod's template by the name of what makes it."""
        made = {
            f"{it['kind']}/{it['metadata']['name']}": it["spec"]["template"] for it in self.objects if holds_pod(it)
        }
        return made | {f"ray/{group.get('groupName', 'head')}": group["template"] for group in self.ray_groups}

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [container for pod in self.pods.values() for container in pod["spec"]["containers"]]

    @property
    def variables(self) -> dict[str, set[str]]:
        """Every environment variable that is set, and the texts that it is set to."""
        found: dict[str, set[str]] = {}
        dockerfiles = self.dockerfile + self.vllm_dockerfile
        for name, value in re.findall(r"^(?:ENV|   ) ([A-Z_]+)=(\S+)", dockerfiles, re.MULTILINE):
            found.setdefault(name, set()).add(value)
        for service in self.services.values():
            for name, value in service.get("environment", {}).items():
                found.setdefault(name, set()).add(value)
        for variable in (variable for container in self.containers for variable in container.get("env", [])):
            found.setdefault(variable["name"], set()).add(variable.get("value", ""))
        return found

    @property
    def commands(self) -> Iterator[list[str]]:
        """Command lines of ours, of Prefect and of Ray that the files run and the guide tells."""
        for service in self.services.values():
            words = service.get("command", [])
            yield from tool_lines(words[-1] if words[:1] == ["bash"] else shlex.join(words))
            yield from tool_lines(" ".join(service["healthcheck"]["test"][1:]))
        for container in self.containers:
            yield from tool_lines(shlex.join([*container.get("command", []), *container.get("args", [])]))
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", self.guide, re.DOTALL | re.MULTILINE):
            yield from tool_lines("" if language else block)
        for group in self.ray_groups:
            head = [] if "groupName" in group else ["--head"]
            yield ["ray", "start", *head, *(f"--{name}={value}" for name, value in group["rayStartParams"].items())]


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    both = {key: merged(one[key], other[key]) for key in one.keys() & other.keys() if isinstance(one[key], dict)}
    volumes = {"volumes": [*one["volumes"], *other["volumes"]]} if {"volumes"} <= one.keys() & other.keys() else {}
    return one | other | both | volumes


def holds_pod(found: dict[str, Any]) -> bool:
    return "template" in found.get("spec", {})


def tool_lines(text: str) -> Iterator[list[str]]:
    """The words from `ray`, `prefect` or `videorefer` on, of each command in a shell script."""
    for line in re.split(r"\n|&&|[;|]", text.replace("\\\n", " ")):
        words = shlex.split(line.strip().removeprefix("until ").removesuffix("&"), comments=True)
        words = list(itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), words))
        for wrapper, last in (("docker", "engine"), ("kubectl", "--")):
            if words[:1] == [wrapper] and "exec" in words:
                words = words[words.index(last) + 1 :]
        if words[:1] and words[0] in ("ray", "prefect", "videorefer"):
            yield words


# The checks: each gives the faults it finds.


def versions(files: Files) -> list[str]:
    images = [service["image"] for service in files.services.values()]
    images += [container["image"] for container in files.containers]
    base = re.findall(r"^FROM (\S+)", files.dockerfile + files.vllm_dockerfile, re.MULTILINE)
    faults = [f"{image}: no version" for image in images + base if not re.search(r":v?\d+\.\d+[^:]*$", image)]
    ours = {f"videorefer-{name}:{PROJECT['version']}" for name in ("engine", "vllm")}
    built = set(re.findall(r"^#.* docker build .*--tag (\S+) ", files.dockerfile + files.vllm_dockerfile, re.MULTILINE))
    told = set(re.findall(r"^docker build .*--tag (\S+) ", files.guide, re.MULTILINE))
    tagged = {f"{it['name']}:{it['newTag']}" for it in files.kustomization["images"]}
    used = {image for image in images if not image.startswith("postgres:")}
    for where, found in {"use": used, "Dockerfiles": built, "guide": told, "kustomization": tagged}.items():
        faults += [f"{where}: {image}, not {ours}" for image in found ^ ours]
    python = re.match(r"python:([\d.]+)", base[0])
    if not python or python[1] not in SpecifierSet(PROJECT["requires-python"]):
        faults.append(f"{base[0]}: not Python {PROJECT['requires-python']}")
    if files.cluster["rayVersion"] != PINS["ray"] or f"=={PINS['prefect']}" not in str(PROJECT["dependencies"]):
        faults.append(f"not Ray {PINS['ray']} and Prefect {PINS['prefect']} as in constraints.txt")
    return faults


def known_variables(files: Files) -> list[str]:
    ours = {
        str(field.validation_alias or f"VIDEOREFER_{name.upper()}") for name, field in Settings.model_fields.items()
    }
    prefect = set(_get_settings_fields(PrefectSettings))
    binary = Path(ray._raylet.__file__).read_bytes()
    ray_root = Path(ray.__file__).parent
    in_python = "".join(
        (ray_root / name).read_text() for name in ("_private/ray_constants.py", "_common/usage/usage_constants.py")
    )
    # PostgreSQL's image, vLLM, the hub's client and OpenMP, each looked up in its documentation
    others = {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD", "HF_HUB_OFFLINE", "OMP_WAIT_POLICY"}
    others |= {"VLLM_API_KEY", "VLLM_NO_USAGE_STATS"}
    of_ray = {name for name in files.variables if name.encode() in binary or f'"{name}"' in in_python}
    faults = [f"{name}: nobody reads it" for name in sorted(files.variables.keys() - ours - prefect - others - of_ray)]
    asked = set(re.findall(r"\$\{(\w+)", yaml.safe_dump([files.compose, files.gpu])))
    asked |= {secret["environment"] for secret in files.compose["secrets"].values()}
    faults += [
        f"{name}: is not in env.example, or of no use there" for name in asked ^ (files.compose_env - {"COMPOSE_FILE"})
    ]
    refs = {
        (ref["name"], ref["key"])
        for container in files.containers
        for variable in container.get("env", [])
        if (ref := variable.get("valueFrom", {}).get("secretKeyRef"))
    }
    (secret,) = files.kustomization["secretGenerator"]
    read = refs | {(files.cluster["authOptions"]["secretName"], "auth_token")}  # KubeRay's name of the key
    given = {(secret["name"], key) for key in files.secret_keys}
    return faults + [f"{key}: in the secret or in a pod, not in both" for key in read ^ given]


def known_commands(files: Files) -> list[str]:
    faults = []
    for program, *words in files.commands:
        try:
            match program:
                case "prefect":
                    prefect_cli.parse_args(words, exit_on_error=False, print_error=False)
                case "ray":
                    parse_click(ray_cli(), words)
                case "videorefer":
                    parse_click(typer.main.get_command(app), words)
        except (CycloptsError, click.ClickException, TyperException) as error:
            faults.append(f"{program} {shlex.join(words)}: {error}")
    return faults


def ray_cli() -> Any:
    with warnings.catch_warnings(action="ignore"):  # it loads Ray Serve, which pydantic warns of
        from ray.scripts.scripts import cli
    return cli


def parse_click(command: Any, words: list[str]) -> None:
    """Read a command line as the program does, and go no further."""
    while hasattr(command, "commands"):
        if words[0] not in command.commands:
            raise click.UsageError(f"no command {words[0]}")
        command, words = command.commands[words[0]], words[1:]
    command.make_context("", list(words))


def places(files: Files) -> list[str]:
    """Names and ports by which parts find one another."""
    faults = []
    services = files.services
    for name, service in services.items():
        faults += [
            f"{name}: publishes {port} to all" for port in service.get("ports", []) if not port.startswith("127.0.0.1:")
        ]
        for secret in service.get("secrets", []):
            path = f"/run/secrets/{secret['target']}"
            if secret["source"] not in files.compose["secrets"] or path not in service["environment"].values():
                faults.append(f"{name}: nobody makes or reads {path}")
        named = {volume.partition(":")[0] for volume in service.get("volumes", []) if re.match(r"\w", volume)}
        faults += [f"{name}: no volume {volume}" for volume in named - files.compose["volumes"].keys()]
        faults += [
            f"{name}: waits for no service {other}" for other in service.get("depends_on", {}).keys() - services.keys()
        ]
    claims, maps = (
        files.of_kind("PersistentVolumeClaim"),
        {it["name"] for it in files.kustomization["configMapGenerator"]},
    )
    for name, pod in files.pods.items():
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        containers = pod["spec"]["containers"]
        ports = [port["containerPort"] for container in containers for port in container.get("ports", [])]
        faults += [f"{name}: a port is taken twice"] * (len(ports) != len(set(ports)))
        for container in containers:
            faults += [
                f"{name}: no volume {it['name']}"
                for it in container.get("volumeMounts", [])
                if it["name"] not in volumes
            ]
            own = {port["name"] for port in container.get("ports", [])}
            probes = [container[probe] for probe in container if probe.endswith("Probe")]
            faults += [f"{name}: probes no port of it" for probe in probes if probe["httpGet"]["port"] not in own]
        for volume in volumes.values():
            claim, config = volume.get("persistentVolumeClaim"), volume.get("configMap")
            if (claim and claim["claimName"] not in claims) or (config and config["name"] not in maps):
                faults.append(f"{name}: nothing makes {volume}")
    for name, found in files.of_kind("Deployment").items():
        if found["spec"]["selector"]["matchLabels"] != found["spec"]["template"]["metadata"]["labels"]:
            faults.append(f"{name}: selects other pods than its own")
    listening = open_places(files)
    asked = [address for name in ("PREFECT_API_URL",) for address in files.variables[name]]
    chats = [chat for profile in files.profiles.values() for role in ROLES if (chat := profile.chat(role))]
    asked += [chat.base_url for chat in chats]
    faults += [f"{url}: nobody listens there" for url in asked if tuple(url.split("/")[2].split(":")) not in listening]
    served = {arg.partition("=")[2] for words in vllm_commands(files) for arg in words if "served-model-name" in arg}
    faults += [f"{chat.model}: vLLM serves {served}" for chat in chats if {chat.model} != served]
    return faults


def open_places(files: Files) -> set[tuple[str, str]]:
    """(host, port) of Compose's services and of Kubernetes' that reach a container's port."""
    found = {(name, flag) for name, service in files.services.items() for flag in port_of(service.get("command", []))}
    pods = [(pod["metadata"]["labels"], pod["spec"]) for pod in files.pods.values() if "metadata" in pod]
    for name, service in files.of_kind("Service").items():
        for labels, spec in pods:
            if labels == service["spec"]["selector"]:
                own = {it["name"]: it["containerPort"] for container in spec["containers"] for it in container["ports"]}
                words = [
                    word
                    for container in spec["containers"]
                    for key in ("command", "args")
                    for word in container.get(key, [])
                ]
                for port in service["spec"]["ports"]:
                    if str(own.get(port["targetPort"])) in port_of(words):
                        found.add((name, str(port["port"])))
    return found


def port_of(words: list[str]) -> list[str]:
    return re.findall(r"--port[= ](\d+)", " ".join(words))


def vllm_commands(files: Files) -> list[list[str]]:
    services = [service["command"] for service in files.services.values() if "vllm" in service["image"]]
    return services + [container["args"] for container in files.containers if "vllm" in container["image"]]


def same_as_here(files: Files) -> list[str]:
    """Numbers that `videorefer up` has too."""
    wanted = {
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": HEARTBEAT_S,
        "PREFECT_WORKER_QUERY_SECONDS": ASK_EVERY_S,
        "RAY_AUTH_MODE": "token",
    }
    faults = [f"{name}: not {value}" for name, value in wanted.items() if files.variables.get(name) != {str(value)}]
    for program, *words in files.commands:
        line = shlex.join(words).replace("=", " ")
        flags = {}
        if program == "ray" and "start" in words:
            flags = {"--metrics-export-port": METRICS_PORT, "--object-store-memory": OBJECT_STORE_BYTES}
        if program == "ray" and "--head" in words and "--block" in words:
            flags["--dashboard-port"] = DASHBOARD_PORT
        if program == "prefect" and "worker" in words:
            flags = {"--pool": POOL, "--type": "process", "--limit": 1}
        faults += [
            f"{program} {line}: not {flag} {value}" for flag, value in flags.items() if f"{flag} {value}" not in line
        ]
    return faults


def kept(files: Files) -> list[str]:
    """Files that kustomization.yaml names are there; the secrets' stays out of git, its example does not."""
    names = [*files.kustomization["resources"], *files.kustomization["configMapGenerator"][0]["files"]]
    faults = [f"{name}: is not there" for name in names if not (KUBERNETES / name).is_file()]
    return faults + [
        f"{env}: is made from another file"
        for env in files.kustomization["secretGenerator"][0]["envs"]
        if env != "secrets.env"
    ]


Check = Callable[[Files], list[str]]
CHECKS: list[Check] = [versions, known_variables, known_commands, places, same_as_here, kept]


@pytest.fixture(scope="module")
def files() -> Files:
    return Files.read()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_files_are_without_fault(files: Files, check: Check) -> None:
    assert check(files) == []


def container(files: Files, pod: str, number: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = files.pods[pod]["spec"]["containers"][number]
    return found


def edit(files: Files, name: str, old: str, new: str) -> None:
    """Change one of the texts."""
    text = getattr(files, name)
    assert old in text
    setattr(files, name, text.replace(old, new, 1))


def engine(files: Files) -> dict[str, Any]:
    found: dict[str, Any] = files.compose["services"]["engine"]
    return found


def variable(files: Files, name: str) -> dict[str, Any]:
    """One of the worker's in the head's pod."""
    return next(it for it in container(files, "ray/head", 1)["env"] if it["name"] == name)


def service(files: Files, name: str) -> dict[str, Any]:
    """The `spec` of Kubernetes' service."""
    spec: dict[str, Any] = files.of_kind("Service")[name]["spec"]
    return spec


def head_params(files: Files) -> dict[str, str]:
    params: dict[str, str] = files.cluster["headGroupSpec"]["rayStartParams"]
    return params


VLLM, HEAD, WORKER = "Deployment/videorefer-vllm", "ray/head", 1
Break = Callable[[Files], object]
BREAKS: dict[Check, dict[str, Break]] = {
    versions: {
        "latest": lambda it: edit(it, "vllm_dockerfile", "vllm-openai:v0.32.0", "vllm-openai:latest"),
        "upstream's image": lambda it: container(it, VLLM).update(image="vllm/vllm-openai:v0.32.0"),
        "an image that kustomize leaves as it is": lambda it: it.kustomization["images"].pop(),
        "another Ray": lambda it: it.cluster.update(rayVersion="2.59.0"),
        "another Python": lambda it: edit(it, "dockerfile", "python:3.11.14", "python:3.12.4"),
        "another release of ours": lambda it: engine(it).update(image="videorefer-engine:0.0.9"),
    },
    known_variables: {
        "one of vLLM's": lambda it: edit(it, "vllm_dockerfile", "VLLM_NO_USAGE_STATS", "VLLM_NO_USAGE_STATISTICS"),
        "one of ours": lambda it: engine(it)["environment"].update(VIDEOREFER_CACHE_DIR="/cache"),
        "one of Prefect's": lambda it: engine(it)["environment"].update(PREFECT_API_URI="http://prefect:4200/api"),
        "one of Ray's": lambda it: engine(it)["environment"].update(RAY_AUTH_TOKEN_FILE="/run/secrets/ray-token"),
        "a password that is not asked for": lambda it: it.compose_env.discard("PREFECT_AUTH"),
        "a key that the secret lacks": lambda it: it.secret_keys.discard("auth_token"),
    },
    known_commands: {
        "a flag of ray": lambda it: head_params(it).update({"dashboard-hosts": "::"}),
        "a flag of prefect": lambda it: container(it, HEAD, WORKER)["command"].append("--healthcheck"),
        "a command of ours": lambda it: edit(it, "guide", "engine videorefer build", "engine videorefer make"),
        "a flag of ours": lambda it: edit(it, "guide", "--ray auto --submit", "--ray auto --submitted"),
    },
    places: {
        "a port for all": lambda it: engine(it).update(ports=["8265:8265"]),
        "a port of nobody": lambda it: variable(it, "PREFECT_API_URL").update(value="http://videorefer-prefect:43/api"),
        "a selector of nothing": lambda it: service(it, "videorefer-vllm").update(selector={"app": "vllm"}),
        "a probe of no port": lambda it: container(it, HEAD, WORKER)["livenessProbe"]["httpGet"].update(port="health"),
        "a claim of nobody": lambda it: it.objects.remove(it.of_kind("PersistentVolumeClaim")["videorefer-lake"]),
        "two on a port": lambda it: container(it, HEAD, WORKER)["ports"][0].update(containerPort=9464),
        "a secret nobody reads": lambda it: engine(it)["secrets"][0].update(target="token"),
        "another model": lambda it: container(it, VLLM)["args"].append("--served-model-name=qwen"),
    },
    same_as_here: {
        "another pool": lambda it: container(it, HEAD, WORKER)["command"].remove("--pool=videorefer"),
        "another page of metrics": lambda it: head_params(it).pop("metrics-export-port"),
        "Ray without a token": lambda it: engine(it)["environment"].update(RAY_AUTH_MODE="disabled"),
    },
    kept: {"a manifest that is gone": lambda it: it.kustomization["resources"].append("ray.yaml")},
}


@pytest.mark.parametrize(("check", "name"), [(check, name) for check, breaks in BREAKS.items() for name in breaks])
def test_a_fault_is_found(files: Files, check: Check, name: str) -> None:
    broken = copy.deepcopy(files)
    BREAKS[check][name](broken)
    assert check(broken)


def test_every_check_is_tried_with_a_fault() -> None:
    assert set(BREAKS) == set(CHECKS)
