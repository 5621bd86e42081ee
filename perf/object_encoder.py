"""Processor time from masks in pixels to object tokens: all objects together against a loop over objects and frames.

Run by `make perf`. 16 objects on the same 32 frames with VideoRefer-7B's shapes: features 32 x 27 x 27 x 1152, masks
360 x 640 (ellipses of several sizes that move), tokens of 3584. Both sides include bringing the masks to the grid,
pooling, merging to 4 tokens per object and the MLP, but not the vision tower. Ours is the default encoder, boxes and
position included. The loop has no position; it does one object and one frame at a time and pools as the official code
does: channels first, all of a frame's features times the mask, over its sum, added up along rows and columns. It is
spared their copy of the features per mask, and its MLP takes all tokens at once, as theirs does. The plain loop is the
same but for its pooling, one product of mask and features: what lies between the two loops is the form of the official
layer, what lies between the plain loop and ours is doing all masks together. Only the first is held to a bound. First
all three are checked to give the same tokens with `paper_exact`; then medians of five, taken in turns, on one thread.
"""

import itertools
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - its customary name
from torch import Tensor

from model.inputs import MaskBatch, ObjectTokens
from model.mask_grid import box_xyxy, coverage_weights, official_weights
from model.object_encoder import SpatialTemporalObjectEncoder

NUM_OBJECTS, NUM_FRAMES = 16, 32
HEIGHT_PX, WIDTH_PX = 360, 640
GRID, CHANNELS, HIDDEN, NUM_TOKENS = (27, 27), 1152, 3584, 4
ROUNDS = 5
NEEDED = 5.0
"""Times less processor time than the loop written as the official layer is."""

PoolOne = Callable[[Tensor, Tensor], Tensor]
"""Features (h, w, D) and one mask (H, W) to the mean (D,) over the cells that the interpolated mask touches."""


def make_masks() -> Tensor:
    """Ellipses of 24 to 324 px that drift to the right, (objects, frames, height, width) bool."""
    rows, columns = torch.arange(HEIGHT_PX)[:, None], torch.arange(WIDTH_PX)
    masks = torch.zeros(NUM_OBJECTS, NUM_FRAMES, HEIGHT_PX, WIDTH_PX, dtype=torch.bool)
    for number in range(NUM_OBJECTS):
        half_px = 12 + 10 * number
        for frame in range(NUM_FRAMES):
            middle = (number * 23 % HEIGHT_PX, (number * 37 + frame * 5) % WIDTH_PX)
            masks[number, frame] = ((rows - middle[0]) / half_px) ** 2 + ((columns - middle[1]) / half_px) ** 2 < 1
    return masks


def batch_of(weights: Tensor, boxes: Tensor) -> MaskBatch:
    """All masks as the processor hands them on, object after object."""
    frame_index = torch.arange(NUM_FRAMES).repeat(NUM_OBJECTS)
    object_index = torch.arange(NUM_OBJECTS).repeat_interleave(NUM_FRAMES)
    return MaskBatch(weights, frame_index, object_index, boxes, frame_index / NUM_FRAMES)


def on_grid(mask: Tensor) -> Tensor:
    """The cells that the interpolated mask (H, W) touches, (h, w) of 0 and 1."""
    return (F.interpolate(mask[None, None].float(), GRID, mode="bilinear", align_corners=False)[0, 0] > 0).float()


def pooled_plainly(features: Tensor, mask: Tensor) -> Tensor:
    """A PoolOne as one would write it: a product of mask and features."""
    inside = on_grid(mask)
    return torch.einsum("hw,hwd->d", inside / (inside.sum() + 1e-8), features)


def pooled_officially(features: Tensor, mask: Tensor) -> Tensor:
    """A PoolOne in the official form."""
    inside = on_grid(mask)
    return (features.permute(2, 0, 1) * inside / (inside.sum() + 1e-8)).sum(-1).sum(-1)


def merged_one(rows: list[Tensor]) -> Tensor:
    """Scan from left to right and join what is at least as alike as the (k - u)-th likest pair."""
    if len(rows) <= NUM_TOKENS:
        return torch.stack(rows)
    alike = torch.stack([F.cosine_similarity(a, b, dim=0) for a, b in itertools.pairwise(rows)]).tolist()
    threshold = sorted(alike, reverse=True)[len(rows) - NUM_TOKENS - 1]
    groups = [[rows[0]]]
    for row, similarity in zip(rows[1:], alike, strict=True):
        if similarity >= threshold:
            groups[-1].append(row)
        else:
            groups.append([row])
    return torch.stack([torch.stack(group).mean(0) for group in groups])


def loop(encoder: SpatialTemporalObjectEncoder, features: Tensor, masks: Tensor, pool_one: PoolOne) -> Tensor:
    """One object after the other and one frame after the other."""
    tokens = []
    for of_object in masks:
        rows = [pool_one(features[frame], mask) for frame, mask in enumerate(of_object)]
        tokens.append(merged_one(rows))
    projected: Tensor = encoder.mlp(torch.cat(tokens))
    return projected


def encode(encoder: SpatialTemporalObjectEncoder, features: Tensor, masks: Tensor) -> tuple[ObjectTokens, float]:
    """The encoder on all masks; also returns the processor seconds until they were on the grid, boxes included."""
    start = time.process_time()
    weigh = official_weights if encoder.paper_exact else coverage_weights
    flat = masks.flatten(0, 1)
    batch = batch_of(weigh(flat, GRID), box_xyxy(flat))
    on_grid_s = time.process_time() - start
    return encoder(features, batch), on_grid_s


def main() -> None:
    """Print the processor time of all sides and of our two parts; exits 1 where ours saves too little."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    masks, features = make_masks(), torch.randn(NUM_FRAMES, *GRID, CHANNELS)
    ours = SpatialTemporalObjectEncoder(CHANNELS, HIDDEN, NUM_TOKENS, object_position=True, paper_exact=False)
    exact = SpatialTemporalObjectEncoder(CHANNELS, HIDDEN, NUM_TOKENS, object_position=False, paper_exact=True)
    expected = encode(exact, features, masks)[0].tokens
    for pool_one in (pooled_officially, pooled_plainly):
        if not torch.allclose(loop(exact, features, masks, pool_one), expected, atol=1e-5):
            sys.exit(f"the loop with {pool_one.__name__} and the encoder with paper_exact give other tokens")
    timed = []
    for _ in range(ROUNDS):
        start = time.process_time()
        loop(exact, features, masks, pooled_officially)
        plain = time.process_time()
        loop(exact, features, masks, pooled_plainly)
        between = time.process_time()
        _, on_grid_s = encode(ours, features, masks)
        timed.append((plain - start, between - plain, time.process_time() - between, on_grid_s))
    loop_s, plain_s, ours_s, grid_s = (statistics.median(side) for side in zip(*timed, strict=True))
    ratio = loop_s / ours_s
    sys.stdout.write(
        f"{NUM_OBJECTS} objects x {NUM_FRAMES} frames, masks to tokens: loop {loop_s:.3f} CPU-s, ours {ours_s:.3f} "
        f"(masks to grid {grid_s:.3f}, pool, merge and MLP {ours_s - grid_s:.3f}), {ratio:.1f} times less; "
        f"plain loop with one product per mask {plain_s:.3f}, {plain_s / ours_s:.1f} times ours (no bound)\n"
    )
    if ratio < NEEDED:
        sys.exit(f"the encoder must take at least {NEEDED:g} times less than the loop")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
