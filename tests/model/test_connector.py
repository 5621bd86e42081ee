"""The connector against a slow reference, frame by frame and scene by scene, written from the published description."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from model.connector import STCConnector, num_scene_tokens
from model.inputs import SceneIndex

WIDTH, HIDDEN, DEPTH = 6, 8, 2
STRIDE = (2, 2, 2)


@pytest.fixture
def connector() -> STCConnector:
    torch.manual_seed(0)
    made = STCConnector(WIDTH, HIDDEN, DEPTH, STRIDE)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def scenes(*frames: list[int]) -> SceneIndex:
    return SceneIndex(
        torch.tensor([place for each in frames for place in each]), torch.tensor([len(each) for each in frames])
    )


def normed(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = maps - maps.mean(0)
    return centred / (maps.var(0, unbiased=False) + 1e-6).sqrt() * weight[:, None, None] + bias[:, None, None]


def silu(values: Tensor) -> Tensor:
    return values * torch.sigmoid(values)


def mixed(maps: Tensor, weight: Tensor) -> Tensor:
    """A 1x1 convolution, cell by cell."""
    return torch.einsum("oc,chw->ohw", weight[:, :, 0, 0], maps)


def block(maps: Tensor, state: dict[str, Tensor], prefix: str) -> Tensor:
    def named(name: str) -> Tensor:
        return state[f"{prefix}.{name}"]

    def norm(given: Tensor, name: str) -> Tensor:
        return normed(given, named(f"{name}.weight"), named(f"{name}.bias"))

    inner = silu(norm(mixed(maps, named("conv1.weight")), "norm1"))
    padded = functional.pad(inner, (1, 1, 1, 1))
    rows, columns = inner.shape[1:]
    kernel = named("conv2.weight")[:, 0]
    filtered = sum(
        kernel[:, y, x, None, None] * padded[:, y : y + rows, x : x + columns] for y in range(3) for x in range(3)
    )
    inner = silu(norm(torch.as_tensor(filtered), "norm2"))
    squeezed = silu(
        named("squeeze_excite.fc1.weight")[:, :, 0, 0] @ inner.mean((1, 2)) + named("squeeze_excite.fc1.bias")
    )
    share = torch.sigmoid(named("squeeze_excite.fc2.weight")[:, :, 0, 0] @ squeezed + named("squeeze_excite.fc2.bias"))
    inner = norm(mixed(inner * share[:, None, None], named("conv3.weight")), "norm3")
    if f"{prefix}.shortcut.0.weight" in state:
        maps = norm(mixed(maps, named("shortcut.0.weight")), "shortcut.1")
    return silu(inner + maps)


def reference(features: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Tokens of one scene, its frames (T, h, w, D)."""
    frames = list(features.permute(0, 3, 1, 2))
    if len(frames) % 2:
        frames.append(frames[-1])
    for place in range(DEPTH):
        frames = [block(frame, state, f"before.{place}") for frame in frames]
    kernel, bias = state["sampler.weight"], state["sampler.bias"]
    tokens = []
    for time in range(0, len(frames), 2):
        rows, columns = frames[0].shape[1] // 2, frames[0].shape[2] // 2
        sampled = torch.empty(HIDDEN, rows, columns)
        for row in range(rows):
            for column in range(columns):
                window = torch.stack(
                    [f[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] for f in frames[time : time + 2]], 1
                )
                sampled[:, row, column] = (kernel * window).sum((1, 2, 3, 4)) + bias
        grid = silu(sampled)
        for place in range(DEPTH):
            grid = block(grid, state, f"after.{place}")
        tokens.append(grid.permute(1, 2, 0).flatten(0, 1))
    cells = torch.cat(tokens)
    cells = functional.gelu(cells @ state["readout.0.weight"].T + state["readout.0.bias"])
    return cells @ state["readout.2.weight"].T + state["readout.2.bias"]


@torch.no_grad()
@pytest.mark.parametrize(
    "frames", [[[0]], [[0, 1, 2, 3]], [[0, 1, 2]], [[1, 2], [4], [0, 1, 3, 4, 5]], [[2, 2, 2], [2]]]
)
def test_scenes_become_the_tokens_of_the_reference(connector: STCConnector, frames: list[list[int]]) -> None:
    features = torch.randn(6, 5, 4, WIDTH)
    tokens, num_tokens = connector(features, scenes(*frames))
    expected = [reference(features[each], dict(connector.state_dict())) for each in frames]
    assert num_tokens.tolist() == [len(each) for each in expected]
    torch.testing.assert_close(tokens, torch.cat(expected), atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_a_scene_gives_the_same_tokens_alone_and_among_others(connector: STCConnector) -> None:
    features = torch.randn(5, 4, 4, WIDTH)
    together, num_tokens = connector(features, scenes([0, 1, 2], [3, 4]))
    alone, _ = connector(features, scenes([3, 4]))
    torch.testing.assert_close(together[int(num_tokens[0]) :], alone, atol=1e-5, rtol=1e-5)


def test_frames_that_no_scene_shows_are_not_read(connector: STCConnector) -> None:
    features = torch.randn(3, 4, 4, WIDTH)
    features[1] = torch.nan
    tokens, _ = connector(features, scenes([0, 2]))
    assert torch.isfinite(tokens).all()


def test_every_weight_learns(connector: STCConnector) -> None:
    tokens, _ = connector(torch.randn(3, 4, 4, WIDTH), scenes([0, 1, 2]))
    tokens.square().sum().backward()
    assert [name for name, weight in connector.named_parameters() if weight.grad is None or not weight.grad.any()] == []


@pytest.mark.parametrize(
    ("num_frames", "grid_size", "expected"),
    [(16, (27, 27), 1352), (8, (27, 27), 676), (15, (27, 27), 1352), (1, (27, 27), 169), (3, (14, 9), 56)],
)
def test_tokens_are_counted_as_the_paper_does(num_frames: int, grid_size: tuple[int, int], expected: int) -> None:
    assert num_scene_tokens(num_frames, grid_size, STRIDE) == expected


@torch.no_grad()
@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2), (3, 1, 2)])
@pytest.mark.parametrize("num_frames", [1, 4, 5])
def test_the_count_is_that_of_the_tokens(stride: tuple[int, int, int], num_frames: int) -> None:
    connector = STCConnector(WIDTH, HIDDEN, 1, stride)
    tokens, num_tokens = connector(torch.randn(num_frames, 5, 6, WIDTH), scenes(list(range(num_frames))))
    assert [len(tokens)] == num_tokens.tolist() == [num_scene_tokens(num_frames, (5, 6), stride)]


def test_a_grid_smaller_than_the_stride_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1 x 9 cells.*connector_stride \(2, 2, 2\)"):
        num_scene_tokens(4, (1, 9), STRIDE)
