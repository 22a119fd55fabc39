"""Features of many samples by torchrun: rank r writes features-{r}.npy, the rows of one contiguous range.

    torchrun --nproc-per-node 2 examples/extract_features.py FEATURES  # killed at any moment, type it again
    pysel score FEATURES/*.npy --keep-ratio 0.3 --epochs 100 -o SELECTOR

Ranks need nothing of each other, so one that fails harms no other. Rows are appended to a .part whose header says how
many there will be, and whose length says how many there are: a kill -9 loses the batch in the making. A restart
begins at a whole batch, so that every row is computed among the same others, and gets the same bits, as without the
kill.
"""

import io
import os
import sys
from pathlib import Path

import numpy as np
import torch

ROWS, DIM, BATCH = 100_000, 16, 256


def main(folder: Path) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, DIM)).eval()
    images = torch.rand(ROWS, 64)  # in earnest a data set, of which each rank reads its range

    share = -(-ROWS // world)
    first, last = min(rank * share, ROWS), min((rank + 1) * share, ROWS)
    about = {"descr": "<f4", "fortran_order": False, "shape": (last - first, DIM)}
    np.lib.format.write_array_header_1_0(buffer := io.BytesIO(), about)
    header = buffer.getvalue()

    file = folder / f"features-{rank:05d}.npy"
    part = file.with_suffix(".part")
    with (file if file.exists() else part).open("a+b") as out:
        out.seek(0)
        begun = out.read(len(header))
        if begun != header[: len(begun)]:
            raise SystemExit(f"{folder} has features of another number of rows or processes")
        if file.exists():
            return
        rows = max(out.seek(0, os.SEEK_END) - len(header), 0) // (4 * DIM)
        done = rows if rows == last - first else rows // BATCH * BATCH
        out.truncate(len(header) + 4 * DIM * done if begun == header else 0)
        out.write(b"" if begun == header else header)
        print(f"rank {rank}: rows {first + done} to {last - 1}", flush=True)
        for at in range(first + done, last, BATCH):
            with torch.inference_mode():
                features = encoder(images[at : min(at + BATCH, last)])
            out.write(features.numpy().tobytes())
            out.flush()
    part.replace(file)


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    main(Path(sys.argv[1]))
