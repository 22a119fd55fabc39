"""Fabric: its checkpoint holds the sampler's state; its loader wrapper is left out, because it names epochs itself.

    python examples/lightning_fabric.py RUN 8  # its time is up after 8 steps, within epoch 1
    python examples/lightning_fabric.py RUN    # goes on with the samples left

``fabric.setup_dataloaders`` leaves a DistributedSampler, as ours are, alone, but the loader that it returns calls
``set_epoch`` with the number of its own passes: 0, 1, ... again after a restart. So the loop takes the loader as it
is and names the epochs; it moves the batches by ``fabric.to_device``. A run that never resumes may use the wrapper.
"""

import sys
from pathlib import Path

import torch
from lightning.fabric import Fabric
from torch.utils.data import DataLoader, TensorDataset

import pysel


def main(folder: Path, steps: int) -> None:
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    x = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
    dataset = TensorDataset(torch.arange(96), x, x.sum(1, keepdim=True))
    selector = pysel.selection.DynamicSelector.from_features(x, keep_ratio=0.5, epochs=4, num_factors=32, k=4, key=0)
    sampler = pysel.SelectionSampler(selector, key=0)
    loader = DataLoader(dataset, batch_size=4, sampler=sampler, num_workers=2)
    model = torch.nn.Linear(8, 1)
    model, optimiser = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.01))

    step, file = 0, folder / "checkpoint.ckpt"
    if file.exists():
        rest = fabric.load(file, {"model": model, "optimiser": optimiser})  # returns what it has not loaded
        sampler.load_state_dict(rest["sampler"])
        step = rest["step"]
    for epoch in range(sampler.epoch, 3):
        sampler.set_epoch(epoch)  # keeps the loaded position, which is in this epoch
        received = 0
        for index, *batch in loader:
            print(f"epoch {epoch} rank {fabric.global_rank}: {index.tolist()}", flush=True)
            inputs, targets = fabric.to_device(batch)
            optimiser.zero_grad()
            fabric.backward(torch.nn.functional.mse_loss(model(inputs), targets))
            optimiser.step()
            step += 1
            received += len(index)  # workers fetch ahead of the loop
            if step % 2 == 0:
                state = {"model": model, "optimiser": optimiser, "step": step}
                fabric.save(file, {**state, "sampler": sampler.state_dict(yielded=received)})
            if step == steps:
                return


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
