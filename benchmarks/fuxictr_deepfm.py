"""What `small.py` compares us with: FuxiCTR's DeepFM on a dataset that `sparta prepare` wrote. Imports nothing of ours.

    python benchmarks/fuxictr_deepfm.py DATASET BATCH EPOCHS HIDDEN...

Prints, as JSON, the examples a second of the training epochs after the first, and versions.
"""

import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.layers import FactorizationMachine, FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel


class DeepFM(BaseModel):  # type: ignore[misc]
    """As its model zoo has it, which the wheel has not."""

    def __init__(self, features: FeatureMap, hidden: list[int], folder: str) -> None:
        super().__init__(features, verbose=0, model_root=folder, metrics=["AUC"])
        self.embed = FeatureEmbedding(features, 16)
        self.fm = FactorizationMachine(features)
        self.mlp = MLP_Block(
            input_dim=features.sum_emb_out_dim(),
            output_dim=1,
            hidden_units=hidden,
            hidden_activations="ReLU",
        )
        self.compile("adam", "binary_crossentropy", 1e-3)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        given = self.get_inputs(inputs)
        embedded = self.embed(given)
        logits = self.fm(given, embedded) + self.mlp(embedded.flatten(start_dim=1))
        return {"y_pred": self.output_activation(logits)}


def converted(data: Path, folder: Path) -> FeatureMap:
    """Our dataset as its block of numbers and its map of features; lists are padded with 0, names prefixed."""
    schema = json.loads((data / "schema.json").read_text())
    table = pq.read_table(data / "train")
    columns, features = {}, []
    for column in schema["dense"]:
        name = f"f_{column}"
        columns[name] = table[column].to_numpy()
        features.append({name: {"source": "", "type": "numeric"}})
    for feature in schema["sparse"]:
        name, values = f"f_{feature['name']}", table[feature["name"]].combine_chunks()
        if feature["multi"]:
            lists = values if isinstance(values, pa.ListArray) else values.chunk(0)
            lengths = np.diff(lists.offsets.to_numpy())
            padded = np.zeros((len(lists), int(lengths.max())), np.int64)
            padded[np.arange(padded.shape[1]) < lengths[:, None]] = lists.flatten().to_numpy() + 1
            columns[name] = padded
            spec = {"type": "sequence", "vocab_size": feature["rows"] + 1, "max_len": padded.shape[1]}
            features.append(
                {
                    name: {
                        "source": "",
                        "padding_idx": 0,
                        "feature_encoder": "layers.MaskedSumPooling()",
                        **spec,
                    }
                }
            )
        else:
            columns[name] = values.to_numpy(zero_copy_only=False)
            features.append({name: {"source": "", "type": "categorical", "vocab_size": feature["rows"]}})
    columns["label"] = table[schema["labels"][0]].to_numpy()
    np.savez(folder / "train.npz", **columns)
    described = {"dataset_id": "small", "features": features, "labels": ["label"]}
    (folder / "features.json").write_text(json.dumps(described))
    found = FeatureMap("small", str(folder))
    found.load(str(folder / "features.json"), {"embedding_dim": 16})
    return found


def main() -> None:
    data, (batch, epochs, *hidden) = Path(sys.argv[1]), map(int, sys.argv[2:])
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as name:
        features = converted(data, Path(name))
        model = DeepFM(features, hidden, name)
        loader, _ = RankDataLoader(features, "train", f"{name}/train.npz", batch_size=batch, num_workers=0)
        model._max_gradient_norm = 10.0  # this and the rest as its fit() does
        model._total_steps = 0
        model._stop_training = False
        model._eval_steps = sys.maxsize
        for epoch in range(epochs):
            if epoch == 1:
                began = time.perf_counter()
            model.train_epoch(loader)
        rate = loader.num_samples * (epochs - 1) / (time.perf_counter() - began)
        versions = {package: version(package) for package in ("fuxictr", "torch")}
        print(json.dumps({"examples_per_second": rate, "versions": versions}))


if __name__ == "__main__":
    main()
