"""Learning rate over a run."""

import math


def cosine_rate(peak: float, step: int, num_steps: int, warmup_share: float) -> float:
    """The rate of the 0-based `step`: a straight rise over the first ceil(share x steps), then half a cosine to 0.

    The same values as transformers' `get_cosine_schedule_with_warmup`, by which the official training ran; the first
    step of a warm-up therefore has rate 0.
    """
    warmup_steps = math.ceil(num_steps * warmup_share)
    if step < warmup_steps:
        return peak * step / warmup_steps
    passed = (step - warmup_steps) / max(num_steps - warmup_steps, 1)
    return peak * max(0.0, 0.5 * (1 + math.cos(math.pi * passed)))
