"""Features of many samples by Ray Data: every row carries its number, because ``map_batches`` does not keep the order.

    python examples/extract_features_ray.py features.npy
    pysel score features.npy --keep-ratio 0.3 --epochs 100 -o SELECTOR

pysel names samples by their rows, so features must come in the order of the data set. ``ray.data.range`` numbers the
rows; a data set that is read from files has, or gets, a column of numbers. Each batch goes where its numbers say.
(There is ``DataContext.execution_options.preserve_order``, too; one slow batch then holds up all that come after it.)
"""

import sys

import numpy as np
import ray
import torch

ROWS, DIM = 10_000, 16


class Extractor:
    """Made once in each of the processes that work."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.encoder = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, DIM)).eval()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            features = self.encoder(torch.from_numpy(batch["image"].copy()))
        return {"row": batch["row"], "features": features.numpy(), "process": np.full(len(features), id(self))}


def image(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Stands for reading images: sample i is all i / ROWS."""
    row = batch["id"]
    return {"row": row, "image": np.repeat(row[:, None] / ROWS, 64, 1).astype(np.float32)}


def main(path: str) -> None:
    features = np.lib.format.open_memmap(path, "w+", np.float32, (ROWS, DIM))
    missing = np.ones(ROWS, bool)
    data = ray.data.range(ROWS, override_num_blocks=16).map_batches(image)
    data = data.map_batches(Extractor, batch_size=256, concurrency=2, num_cpus=0.5)  # leaves some to read by
    for batch in data.iter_batches(batch_format="numpy"):
        features[batch["row"]] = batch["features"]
        missing[batch["row"]] = False
    features.flush()
    print(f"{ROWS - missing.sum()} of {ROWS} rows", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
