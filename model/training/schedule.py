"""Learning rate over a run."""

import math


def cosine_rate(peak: float, step: int, num_steps: int, warmup_share: float) -> float:
    """The rate of the 0-based `step`: a straight rise over the first w = ceil(share x steps), then half a cosine to 0.

    Step s of the warm-up has rate peak x (s + 1) / w. That differs from `get_cosine_schedule_with_warmup` of
    transformers, by which the official training ran: there it is peak x s / w, so that the first step has rate 0 and a
    run of one step learns nothing. After the warm-up the values are the same.
    """
    warmup_steps = math.ceil(num_steps * warmup_share)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    passed = (step - warmup_steps) / max(num_steps - warmup_steps, 1)
    return peak * max(0.0, 0.5 * (1 + math.cos(math.pi * passed)))
