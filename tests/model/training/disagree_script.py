"""One of two ranks that do not agree: `disagree_script.py FOLDER RANK`, for the tests.

Only rank 0 finds a checkpoint in its run's folder `FOLDER/run-RANK`, and rank 1 holds other weights of the model
`FOLDER/model`. Each leaves what it was told in `FOLDER/said-RANK.json`.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from model.modeling import VideoReferForConditionalGeneration
from model.training.checkpoint import CheckpointError, agreed_checkpoint
from model.training.parts import prepare_parts
from model.training.settings import TrainSettings
from model.training.sharding import process_group, shard


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    said = []
    try:
        agreed_checkpoint(folder / f"run-{rank}", wait_s=0.5)
    except CheckpointError as error:
        said.append(str(error))
    model = VideoReferForConditionalGeneration.from_pretrained(folder / "model")
    settings = TrainSettings(parts=("connector",), learning_rate=0.1, global_batch_size=2, num_steps=1)
    prepare_parts(model, settings)
    if rank == 1:
        next(model.connector.parameters()).data += 1
    try:
        with process_group() as device:
            shard(model, settings, device)
    except ValueError as error:
        said.append(str(error))
    (folder / f"said-{rank}.json").write_text(json.dumps(said))
    dist.barrier()
    dist.destroy_process_group()


main()
