"""Accelerate: it deals out batches itself, so the sampler yields all samples on each process, and keeps the position.

    torchrun --nproc-per-node 2 examples/accelerate_loop.py RUN 8  # its time is up after 8 steps, within epoch 1
    torchrun --nproc-per-node 3 examples/accelerate_loop.py RUN    # goes on with the samples left, on three processes

``rank=0, num_replicas=1``: each process's sampler yields all samples, of which Accelerate takes a share. ``save_state``
has no place for a sampler: register an object that has. A prepared loader counts epochs from 0: tell *it* the epoch.
``skip_first_batches`` is no way to resume: on several processes ``set_epoch`` does not reach a sampler below it, and it
counts a process's batches. ``drop_last=True`` keeps the last round from being filled up with samples trained already.
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

import pysel


class Position:
    """The sampler's, as of the batches received: Accelerate fetches one ahead."""

    def __init__(self, sampler: pysel.WeightedSampler) -> None:
        self.sampler, self.received, self.load_state_dict = sampler, 0, sampler.load_state_dict

    def state_dict(self) -> dict:
        return self.sampler.state_dict(yielded=self.received)


def main(folder: Path, steps: int) -> None:
    accelerator, step = Accelerator(cpu=True), 0
    x = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
    sampler = pysel.WeightedSampler(1 + x[:, 0].abs(), 48, replacement=False, key=0, rank=0, num_replicas=1)
    loader = DataLoader(TensorDataset(torch.arange(96), x, x.sum(1, keepdim=True)), batch_size=4, sampler=sampler)
    model = torch.nn.Linear(8, 1)
    model, optimiser, loader = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.01), loader)
    accelerator.register_for_checkpointing(position := Position(sampler))
    if folder.exists():
        accelerator.load_state(folder)
    for epoch in range(sampler.epoch, 3):
        loader.set_epoch(epoch)  # keeps the loaded position, which is in this epoch
        position.received = 0
        for index, inputs, targets in loader:
            print(f"epoch {epoch} rank {accelerator.process_index}: {index.tolist()}", flush=True)
            optimiser.zero_grad()
            accelerator.backward(torch.nn.functional.mse_loss(model(inputs), targets))
            optimiser.step()
            step += 1
            position.received += 4 * accelerator.num_processes
            if step % 2 == 0:
                accelerator.save_state(folder)
            if step == steps:
                return


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    Accelerator().end_training()  # a process that ends with a group alive may abort
