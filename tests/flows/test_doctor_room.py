"""Workers and vLLM servers that find no room are told before a run waits for it."""

import sys
from importlib.machinery import ModuleSpec
from itertools import product
from types import ModuleType, SimpleNamespace

import pytest

from flows import doctor_room
from flows.doctor_room import Need, Node, check_room, gpus_needed, needs_of
from flows.doctor_servers import check_ray
from flows.profile_config import Profile, load_profile


def fewest_gpus(shares: tuple[float, ...]) -> int:
    """By trying every way to lay shares below one on GPUs."""
    whole = sum(int(share) for share in shares if share >= 1)
    parts = [share for share in shares if share < 1]
    for num in range(len(parts) + 1):
        for places in product(range(num), repeat=len(parts)):
            if all(sum(s for s, p in zip(parts, places, strict=True) if p == gpu) <= 1 + 1e-9 for gpu in range(num)):
                return whole + num
    raise AssertionError(shares)


def test_gpus_are_counted_so_that_no_share_is_torn() -> None:
    for shares in (
        (),
        (0.5, 0.5),
        (0.6, 0.6, 0.6),
        (0.5, 0.25, 0.25, 0.5, 0.1),
        (1.0, 2.0, 0.3),
        (0.1,) * 7,
        (0.7, 0.3),
    ):
        assert gpus_needed(shares) == fewest_gpus(shares), shares


@pytest.fixture
def greedy() -> Profile:
    """Asks for GPUs by its segmenter and a vLLM section."""
    whole = load_profile("painted").model_dump()
    whole["segmenter"]["resources"] |= {"workers": 3, "gpus": 0.6}
    whole["vllm"] = [{"name": "words", "model": "nowhere/to-be-found", "replicas": 2, "gpus": 2}]
    return Profile.model_validate(whole)


def test_gpus_that_lack_are_counted_and_who_asks_is_said(greedy: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    (none,) = check_room(needs_of(load_profile("painted")), None)
    assert (none.ok, none.detail) == (True, "none asked for")
    monkeypatch.setattr(doctor_room, "_gpus_here", lambda: 4)
    monkeypatch.setattr(doctor_room, "_torch_without_gpus", str)
    (found,) = check_room(needs_of(greedy), None)
    assert found.detail == "7 needed (segmenter 3 x 0.6, vLLM words 2 x 2), 4 here: 3 lacking"
    assert (found.ok, "--ray host:port" in found.mend) == (False, True)
    monkeypatch.setattr(doctor_room, "_gpus_here", lambda: 7)
    assert check_room(needs_of(greedy), None)[0].ok


@pytest.mark.parametrize(("cuda", "hip", "is_said"), [(None, None, True), ("12.9", None, False), (None, "6.4", False)])
def test_a_torch_that_was_built_without_gpus_is_what_lacks(
    cuda: str | None, hip: str | None, is_said: bool, greedy: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = ModuleType("torch")
    torch.__spec__ = ModuleSpec("torch", None)
    torch.__version__ = "2.9.9+cpu"  # type: ignore[attr-defined]
    torch.version = SimpleNamespace(cuda=cuda, hip=hip)  # type: ignore[attr-defined]
    torch.cuda = SimpleNamespace(device_count=lambda: 0)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    (found,) = check_room(needs_of(greedy), None)
    assert not found.ok
    assert ("torch 2.9.9+cpu is a build without CUDA" in found.detail) == is_said
    assert ("install the build of torch" in found.mend) == is_said


NEEDS = [Need("segmenter", 4, 12.0, 0.5), Need("vLLM words", 1, 4.0, 2.0)]


@pytest.mark.parametrize(
    ("nodes", "told"),
    [
        ([Node(48, 2), Node(8, 2)], {}),
        ([Node(40, 4)], {"CPUs": "52 needed (segmenter 4 x 12, vLLM words 1 x 4), 40 at head:1: 12 lacking"}),
        ([Node(96, 3)], {"GPUs": "4 needed (segmenter 4 x 0.5, vLLM words 1 x 2), 3 at head:1: 1 lacking"}),
        (
            [Node(24, 1)] * 4,
            {"nodes": "vLLM words: each takes 2 GPUs and 4 CPUs of one node, and the largest at head:1 has 1 and 24"},
        ),
        (
            [Node(2, 4), Node(64, 1)],
            {"nodes": "vLLM words: each takes 2 GPUs and 4 CPUs of one node, and the largest at head:1 has 4 and 2"},
        ),
    ],
)
def test_a_cluster_must_have_cpus_and_gpus_and_nodes_that_are_large_enough(
    nodes: list[Node], told: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_room, "_nodes", lambda _address: nodes)
    found = check_room(NEEDS, "head:1")
    assert [finding.what for finding in found] == ["CPUs", "GPUs", "nodes"]
    assert {finding.what: finding.detail for finding in found if not finding.ok} == told
    assert all(bool(finding.mend) != finding.ok for finding in found)


def test_a_cluster_that_cannot_be_asked_is_told() -> None:
    (found,) = check_room(NEEDS, "127.0.0.1:1")
    assert (found.what, found.ok, "--ray host:port" in found.mend) == ("room", False, True)


@pytest.mark.slow
def test_what_a_cluster_has_is_asked_there(greedy: Profile) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 1})
    try:
        cluster.add_node(num_cpus=2, num_gpus=4)
        address = cluster.address
        assert check_ray(address).detail == f"{address} answers"
        found = {finding.what: finding for finding in check_room(needs_of(greedy), address)}
        assert found["GPUs"].detail.endswith(f"5 at {address}: 2 lacking")
        assert found["CPUs"].detail.endswith(f"3 at {address}: 3.5 lacking")
        assert (found["nodes"].ok, found["nodes"].detail) == (True, f"2 at {address}, and each worker fits on one")
    finally:
        cluster.shutdown()
