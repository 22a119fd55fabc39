"""Ray Train: it restarts failed workers itself, from the checkpoint reported last, which holds the sampler's state.

    python examples/ray_train.py RUN  # fails after 7 steps, within epoch 1, and goes on after the 6th

``prepare_data_loader`` leaves a DistributedSampler, as ours are, alone. With several workers it puts a random one in
the place of any other sampler, with one warning on rank 0, so that a laptop and a cluster train on different samples.
It also makes the loader anew without ``batch_sampler=``: pass ``sampler=`` and ``batch_size=``.
"""

import sys
import tempfile
from pathlib import Path

import ray.train
import ray.train.torch
import torch
from torch.utils.data import DataLoader, TensorDataset

import pysel


def train(config: dict) -> None:
    rank = ray.train.get_context().get_world_rank()
    x = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
    dataset = TensorDataset(torch.arange(96), x, x.sum(1, keepdim=True))
    sampler = pysel.WeightedSampler(weights=1 + x[:, 0].abs(), num_samples=48, replacement=False, key=0)
    loader = ray.train.torch.prepare_data_loader(DataLoader(dataset, batch_size=4, sampler=sampler))
    model = ray.train.torch.prepare_model(torch.nn.Linear(8, 1))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    step, checkpoint = 0, ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder) / "state.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        sampler.load_state_dict(state["sampler"])
        step = state["step"]
    for epoch in range(sampler.epoch, 3):
        sampler.set_epoch(epoch)  # keeps the loaded position, which is in this epoch
        for index, inputs, targets in loader:
            print(f"epoch {epoch} rank {rank}: {index.tolist()}", flush=True)
            optimiser.zero_grad()
            torch.nn.functional.mse_loss(model(inputs), targets).backward()
            optimiser.step()
            step += 1
            if step == 7 and not checkpoint:
                raise RuntimeError("a worker has failed")
            if step % 2 == 0:  # all ranks report; ranks in step have equal states, of which one is saved
                with tempfile.TemporaryDirectory() as folder:
                    state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step}
                    torch.save({**state, "sampler": sampler.state_dict()}, Path(folder) / "state.pt")
                    saved = ray.train.Checkpoint.from_directory(folder) if rank == 0 else None
                    ray.train.report({"step": step}, checkpoint=saved)


if __name__ == "__main__":
    restarts = ray.train.FailureConfig(max_failures=1)
    folder = Path(sys.argv[1]).resolve()
    run = ray.train.RunConfig(name="run", storage_path=str(folder), failure_config=restarts)
    ray.train.torch.TorchTrainer(train, scaling_config=ray.train.ScalingConfig(num_workers=2), run_config=run).fit()
