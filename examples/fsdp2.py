"""FSDP2 and torch.distributed.checkpoint: the sampler is part of the state, and takes its rank from the mesh.

    torchrun --nproc-per-node 2 examples/fsdp2.py RUN 8  # its time is up after 8 steps, within epoch 1
    torchrun --nproc-per-node 3 examples/fsdp2.py RUN    # goes on with the samples left, on three processes

Under tensor, context or pipeline parallelism several ranks train on the same samples: ``mesh=`` has the data-parallel
dimensions (both of HSDP's). Without workers the sampler is where the loop is; with them see stateful_dataloader.py.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

import pysel


def main(folder: Path, steps: int) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("dp",))["dp"]
    x = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
    selector = pysel.selection.DynamicSelector.from_features(x, keep_ratio=0.5, epochs=4, num_factors=32, k=4, key=0)
    sampler = pysel.SelectionSampler(selector, key=0, mesh=mesh)
    loader = DataLoader(TensorDataset(torch.arange(96), x, x.sum(1, keepdim=True)), batch_size=4, sampler=sampler)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    fully_shard(model, mesh=mesh)
    optimiser = torch.optim.AdamW(model.parameters())

    step, latest = 0, folder / "latest"
    if latest.exists():
        step = int(latest.read_text())
        parameters, moments = get_state_dict(model, optimiser)
        dcp.load({"model": parameters, "optimiser": moments, "sampler": sampler}, checkpoint_id=folder / str(step))
        set_state_dict(model, optimiser, model_state_dict=parameters, optim_state_dict=moments)
    for epoch in range(sampler.epoch, 3):
        sampler.set_epoch(epoch)  # keeps the loaded position, which is in this epoch
        for index, inputs, targets in loader:
            print(f"epoch {epoch} rank {dist.get_rank()}: {index.tolist()}", flush=True)
            optimiser.zero_grad()
            torch.nn.functional.mse_loss(model(inputs), targets).backward()
            optimiser.step()
            step += 1
            if step % 2 == 0:
                parameters, moments = get_state_dict(model, optimiser)
                state = {"model": parameters, "optimiser": moments, "sampler": sampler}
                dcp.save(state, checkpoint_id=folder / str(step))
                latest.write_text(str(step))  # only a checkpoint that is complete is ever read
            if step == steps:
                return


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    dist.destroy_process_group()
