"""timm's MultiEpochsDataLoader: it keeps its workers over epochs, and starts an epoch before the loop names it.

    python examples/timm_loader.py RUN 1  # its time is up after one epoch
    python examples/timm_loader.py RUN    # goes on with the next

It wraps the sampler into one that repeats for ever, which names each pass itself, counting from ``sampler.epoch`` as
of the first iteration: set that before. Workers begin the next epoch as this one ends, so ``set_epoch`` and
``set_weights`` between epochs come too late for the next one; give a sampler whose weights you change a plain
DataLoader with ``persistent_workers=True``. A pass always has the length of a whole epoch: resume at epochs, as
timm's own script does. ``timm.data.create_loader`` takes no sampler.
"""

import sys
from pathlib import Path

import torch
from timm.data.loader import MultiEpochsDataLoader
from torch.utils.data import TensorDataset

import pysel


def main(folder: Path, epochs: int) -> None:
    x = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
    dataset = TensorDataset(torch.arange(96), x, x.sum(1, keepdim=True))
    selector = pysel.selection.DynamicSelector.from_features(x, keep_ratio=0.5, epochs=4, num_factors=32, k=4, key=0)
    sampler = pysel.SelectionSampler(selector, key=0)
    loader = MultiEpochsDataLoader(dataset, batch_size=8, sampler=sampler, num_workers=2)
    model = torch.nn.Linear(8, 1)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)

    folder.mkdir(parents=True, exist_ok=True)
    first, file = 0, folder / "checkpoint.pt"
    if file.exists():
        state = torch.load(file, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["epoch"] + 1
    sampler.set_epoch(first)  # before the first iteration
    for epoch in range(first, epochs):
        for index, inputs, targets in loader:
            print(f"epoch {epoch} rank 0: {index.tolist()}", flush=True)
            optimiser.zero_grad()
            torch.nn.functional.mse_loss(model(inputs), targets).backward()
            optimiser.step()
        torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "epoch": epoch}, file)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3)
