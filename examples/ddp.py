"""DDP with DataLoader workers: the loop names the epochs, and saves the sampler's state beside the model's.

    torchrun --nproc-per-node 2 examples/ddp.py RUN 8  # its time is up after 8 steps, within epoch 1
    torchrun --nproc-per-node 3 examples/ddp.py RUN    # goes on with the samples left, on three processes

DDP does not touch samplers. Rank and world size come from torch.distributed when the sampler is first used. Workers
fetch ahead of the loop, so it says what it has received: ``yielded=``. Ranks in step have equal states: one is saved.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import pysel


def main(folder: Path, steps: int) -> None:
    x = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
    dataset = TensorDataset(torch.arange(96), x, x.sum(1, keepdim=True))
    sampler = pysel.WeightedSampler(weights=1 + x[:, 0].abs(), num_samples=48, replacement=False, key=0)
    loader = DataLoader(dataset, batch_size=4, sampler=sampler, num_workers=2, persistent_workers=True)
    model = DistributedDataParallel(torch.nn.Linear(8, 1))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)

    folder.mkdir(parents=True, exist_ok=True)
    step, file = 0, folder / "checkpoint.pt"
    if file.exists():
        state = torch.load(file, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        sampler.load_state_dict(state["sampler"])
        step = state["step"]
    for epoch in range(sampler.epoch, 3):
        sampler.set_epoch(epoch)  # keeps the loaded position, which is in this epoch
        received = 0
        for index, inputs, targets in loader:
            print(f"epoch {epoch} rank {dist.get_rank()}: {index.tolist()}", flush=True)
            optimiser.zero_grad()
            torch.nn.functional.mse_loss(model(inputs), targets).backward()
            optimiser.step()
            step += 1
            received += len(index)
            if step % 2 == 0 and dist.get_rank() == 0:
                state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step}
                state["sampler"] = sampler.state_dict(yielded=received)
                torch.save(state, file.with_suffix(".part"))
                file.with_suffix(".part").replace(file)  # there is a whole checkpoint at any moment
            if step == steps:
                return


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    dist.destroy_process_group()
