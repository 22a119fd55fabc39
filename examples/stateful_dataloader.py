"""torchdata's StatefulDataLoader: it carries the sampler's state, as of the batch that the loop has received.

    torchrun --nproc-per-node 2 examples/stateful_dataloader.py RUN 8  # its time is up after 8 steps, within epoch 1
    torchrun --nproc-per-node 2 examples/stateful_dataloader.py RUN    # goes on with the samples left

It takes the state as a batch goes to a worker and keeps it until the loop receives that batch: nothing need be
counted. The state is loaded as the next pass begins, so name the epoch that it was taken in. After an epoch's last
batch that is still the same one, with nothing left of it; named the next, the next would be empty. The number of
workers must stay. With ``batch_sampler=`` a state is kept of a ``pysel.BatchSampler`` alone.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

import pysel


def main(folder: Path, steps: int) -> None:
    x = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
    dataset = TensorDataset(torch.arange(96), x, x.sum(1, keepdim=True))
    selector = pysel.selection.DynamicSelector.from_features(x, keep_ratio=0.5, epochs=4, num_factors=32, k=4, key=0)
    sampler = pysel.SelectionSampler(selector, key=0)
    loader = StatefulDataLoader(dataset, batch_size=4, sampler=sampler, num_workers=2)
    model = DistributedDataParallel(torch.nn.Linear(8, 1))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)

    folder.mkdir(parents=True, exist_ok=True)
    step, first, file = 0, 0, folder / "checkpoint.pt"
    if file.exists():
        state = torch.load(file, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        loader.load_state_dict(state["loader"])
        step, first = state["step"], state["epoch"]
    for epoch in range(first, 3):
        sampler.set_epoch(epoch)
        for index, inputs, targets in loader:
            print(f"epoch {epoch} rank {dist.get_rank()}: {index.tolist()}", flush=True)
            optimiser.zero_grad()
            torch.nn.functional.mse_loss(model(inputs), targets).backward()
            optimiser.step()
            step += 1
            if step % 2 == 0 and dist.get_rank() == 0:  # ranks in step have equal states
                state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step, "epoch": epoch}
                torch.save({**state, "loader": loader.state_dict()}, file.with_suffix(".part"))
                file.with_suffix(".part").replace(file)  # there is a whole checkpoint at any moment
            if step == steps:
                return


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    dist.destroy_process_group()
