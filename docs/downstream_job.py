"""A job as another team would write it, without this package: `python downstream_job.py LAKE` learns the latest build.

It reads the committed shards as plain Parquet and learns, byte by byte, to answer a question from the words and from
where the object is seen (its masks, as COCO run lengths).
"""

import json
import sys
from pathlib import Path

import torch
from datasets import load_dataset
from pycocotools import mask as coco

lake = Path(sys.argv[1])
build = lake / "builds" / json.loads((lake / "latest.json").read_text())["build"]
rows = load_dataset("parquet", data_files=str(build / "data/qa/*.parquet"), split="train")
rows = rows.filter(lambda row: row["split"] == "train" and len(row["objects"]) == 1)


def example(row):
    """Where an object is (row and column, 0 to 1), and question and answer as bytes."""
    size = [row["height"], row["width"]]
    seen = [coco.decode({"size": size, "counts": counts}) for counts in row["objects"][0]["rle"] if counts]
    places = torch.tensor([[x.mean() for x in frame.nonzero()] for frame in seen]).mean(0) / torch.tensor(size)
    text = "\n".join(turn["value"] for turn in row["conversations"]).encode()[:192].ljust(193)
    return places.float(), torch.tensor(list(text))


torch.manual_seed(0)
embed, place, reader = torch.nn.Embedding(256, 64), torch.nn.Linear(2, 64), torch.nn.GRU(64, 128, batch_first=True)
network = torch.nn.ModuleList([embed, place, reader, head := torch.nn.Linear(128, 256)])
optimiser = torch.optim.Adam(network.parameters(), 3e-3)
loader = torch.utils.data.DataLoader([example(row) for row in rows], batch_size=8, shuffle=True)
for epoch in range(3):
    for places, text in loader:
        hidden, _ = reader(embed(text[:, :-1]) + place(places)[:, None])
        loss = torch.nn.functional.cross_entropy(head(hidden).transpose(1, 2), text[:, 1:])
        optimiser.zero_grad(), loss.backward(), optimiser.step()
        print(f"epoch {epoch}, loss {loss.item():.3f}")
