"""One frame of SAM 2 for all objects of a prompt frame at once, by the parts of transformers' `Sam2VideoModel`.

Its own `forward` goes through memory attention and mask decoder object by object, with some 500 small operations for
each, which a GPU does sooner than they are launched; and it copies figures to the GPU in between, for which everything
waits. Objects prompted on one frame remember the same frames, so here they are one batch. What is said of an object is
what `forward` says, but for the last bits of sums over another shape.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple


class Said(NamedTuple):
    """Of each object: mask logits (objects, h, w) and those at the model's own size (objects, 1, side, side), object
    score (objects, 1, 1), pointer (objects, channels).
    """

    logits: Any
    large_logits: Any
    object_logits: Any
    pointers: Any


class Remembered(NamedTuple):
    """One frame's memory (places, objects, channels), None once no step reads it, and pointers (objects, channels)."""

    memory: Any
    pointers: Any


class ObjectBatch:
    """Objects prompted on the frame `place` of `num_frames`, by masks (objects, 1, side, side) of 0 and 1.

    Steps are one frame apart: forward from the prompt frame to the clip's end, then back from the frame before it. What
    no later step reads is dropped, so what is held does not grow with the clip.
    """

    def __init__(self, model: Any, place: int, masks: Any, num_frames: int) -> None:
        import torch

        self._model, self._masks, self._num_objects, self.place = model, masks, len(masks), place
        self._given: Remembered | None = None
        self._past: dict[int, Remembered] = {}
        self._max_pointers = min(num_frames, model.config.max_object_pointers_in_encoder)
        with torch.inference_mode():
            self._frame_codes = _frame_codes(model)
            self._decoder_codes = model.get_image_wide_positional_embeddings()
            no_point = torch.zeros(1, 1, 1, 2, dtype=model.dtype, device=model.device)
            no_label = -torch.ones(1, 1, 1, dtype=torch.int32, device=model.device)
            self._sparse, self._dense = model.prompt_encoder(no_point, no_label, None, None)
            self._memory_codes = _memory_codes(model)
            self._pointer_codes = _pointer_codes(model, num_frames, self._max_pointers)

    def step(self, place: int, levels: Sequence[Any], reverse: bool) -> tuple[Any, Any]:
        """Mask logits (objects, h, w) and object scores (objects,) on a frame.

        `levels` are its features, finest level first, each (places, 1, channels).
        """
        import torch

        is_prompt = place == self.place
        sizes = self._model.backbone_feature_sizes
        maps = [level.permute(1, 2, 0).unflatten(2, size) for level, size in zip(levels, sizes, strict=True)]
        with torch.inference_mode():
            said = (
                self._prompted(maps) if is_prompt else self._decoded(self._recalled(levels[-1], place, reverse), maps)
            )
            memory, _ = self._model._encode_new_memory(levels[-1], said.large_logits, said.object_logits, is_prompt)
        if is_prompt:
            self._given, self._masks = Remembered(memory, said.pointers), None
        else:
            self._past[place] = Remembered(memory, said.pointers)
        self._forget(place, reverse)
        return said.logits, said.object_logits[:, 0, 0]

    def _prompted(self, maps: list[Any]) -> Said:
        """The given masks as they are; one by one, as this is done on one frame of a clip only."""
        import torch

        said = [self._model._use_mask_as_output(maps[-1], maps[:-1], mask[None]) for mask in self._masks]
        return Said(
            torch.cat([own.pred_masks[0] for own in said]),
            torch.cat([own.high_res_masks for own in said]),
            torch.cat([own.object_score_logits for own in said]),
            torch.cat([own.object_pointer[0] for own in said]),
        )

    def _recalled(self, features: Any, place: int, reverse: bool) -> Any:
        """(objects, channels, h, w): the frame's last level, seen with each object's past in mind."""
        import torch

        model = self._model
        frames = self._read_back(place, range(model.num_maskmem - 1, 0, -1), reverse)
        pointed = self._read_back(place, range(1, self._max_pointers), reverse)
        # a pointer is as long as several places of a memory, and is read as so many
        pointers = torch.stack([seen.pointers for _, seen in pointed])
        parts = pointers.shape[2] // model.mem_dim
        pointers = pointers.view(len(pointed), -1, parts, model.mem_dim).transpose(1, 2).flatten(0, 1)
        pointer_codes = torch.stack([self._pointer_codes[age] for age, _ in pointed]).repeat_interleave(parts, dim=0)
        # in memory the prompt frame has the last code, however long ago it was
        memory_codes = [self._memory_codes[-1 if seen is self._given else age - 1] for age, seen in frames]
        fused = model.memory_attention(
            current_vision_features=features.expand(-1, self._num_objects, -1),
            current_vision_position_embeddings=self._frame_codes,
            memory=torch.cat([*(seen.memory for _, seen in frames), pointers]).to(model.dtype),
            memory_posision_embeddings=torch.cat([*memory_codes, pointer_codes]),
            num_object_pointer_tokens=len(pointers),
        )
        return fused[0].transpose(1, 2).unflatten(2, model.backbone_feature_sizes[-1])

    def _read_back(self, place: int, ages: Iterable[int], reverse: bool) -> list[tuple[int, Remembered]]:
        """The prompt frame, then those of the given ages that are remembered, each with its age."""
        assert self._given is not None, "the prompt frame comes first"
        seen = ((age, self._past.get(place + age if reverse else place - age)) for age in ages)
        return [(abs(place - self.place), self._given), *((age, frame) for age, frame in seen if frame is not None)]

    def _decoded(self, recalled: Any, maps: list[Any]) -> Said:
        """Of each object's masks the one that the model thinks best; nothing, and no pointer, where it is not seen."""
        import torch
        from torch.nn.functional import interpolate
        from transformers.models.sam2_video.modeling_sam2_video import NO_OBJ_SCORE

        model, rows = self._model, torch.arange(len(recalled), device=recalled.device)
        masks, ious, tokens, object_logits = model.mask_decoder(
            image_embeddings=recalled,
            image_positional_embeddings=self._decoder_codes,
            sparse_prompt_embeddings=self._sparse.expand(len(recalled), -1, -1, -1),
            dense_prompt_embeddings=self._dense,
            multimask_output=model._use_multimask(is_init_cond_frame=False, point_inputs=None),
            high_resolution_features=maps[:-1],
        )
        best = ious[:, 0].argmax(dim=-1)
        logits = torch.where(object_logits > 0, masks[rows, 0, best], NO_OBJ_SCORE)
        side_px = (model.image_size, model.image_size)
        large = interpolate(logits[:, None].float(), side_px, mode="bilinear", align_corners=False).to(logits.dtype)
        pointers = model.object_pointer_proj(tokens[rows, 0, best])
        pointers = torch.where(object_logits[:, 0] > 0, pointers, model.no_object_pointer)
        return Said(logits, large, object_logits, pointers)

    def _forget(self, place: int, reverse: bool) -> None:
        """The frames next after the prompt are kept for the sweep back, which reads them as the official predictor."""
        for seen, remembered in list(self._past.items()):
            age = seen - place if reverse else min(place - seen, seen - self.place)
            if age >= max(self._max_pointers, self._model.num_maskmem) - 1:
                del self._past[seen]
            elif age >= self._model.num_maskmem - 1:
                self._past[seen] = remembered._replace(memory=None)


def _frame_codes(model: Any) -> Any:
    """(places, 1, channels): where in the frame, for its last level."""
    return _sines(model, model.vision_encoder.neck.position_encoding)


def _memory_codes(model: Any) -> Any:
    """(ages, places, 1, channels): where in the frame, and how long ago."""
    return _sines(model, model.memory_encoder.position_encoding) + model.memory_temporal_positional_encoding


def _sines(model: Any, position_encoding: Any) -> Any:
    """Taken in float32, as in bfloat16 they are wrong in their second decimal."""
    import torch

    shape = torch.Size((1, 1, *model.backbone_feature_sizes[-1]))
    return position_encoding(shape, model.device, torch.float32).to(model.dtype).flatten(2).permute(2, 0, 1)


def _pointer_codes(model: Any, num_frames: int, max_pointers: int) -> Any:
    """(ages, 1, channels): how long ago, for every age that the clip allows."""
    import torch
    from transformers.models.sam2_video.modeling_sam2_video import get_1d_sine_pe

    ages = torch.arange(num_frames, dtype=torch.float32, device=model.device)
    if not model.config.enable_temporal_pos_encoding_for_object_pointers:
        return ages.new_zeros(num_frames, 1, model.mem_dim, dtype=model.dtype)
    sines = get_1d_sine_pe(ages / max(max_pointers - 1, 1), dim=model.hidden_dim).to(model.dtype)
    return model.temporal_positional_encoding_projection_layer(sines)[:, None]
