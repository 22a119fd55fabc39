"""Lightning: it leaves a DistributedSampler, as ours are, alone; the module saves the sampler's state and loads it.

    python examples/lightning_trainer.py RUN 8  # its time is up after 8 steps, within epoch 1
    python examples/lightning_trainer.py RUN    # goes on with the samples left

Lightning saves loaders that have a state, not samplers, and names an epoch after workers have begun to fetch it: a
resumed run would begin with epoch 0's samples (#21938). With a StatefulDataLoader one that is resumed from an epoch's
last batch trains on nothing for an epoch. A sampler that is loaded before its loader is used goes on where it was.
Workers fetch ahead: ``yielded=`` is what was received. Batches are counted once: epochs of other lengths need
``reload_dataloaders_every_n_epochs=1``; batch samplers need ``use_distributed_sampler=False``.
"""

import sys
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

import pysel

X = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))


class Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.received = torch.nn.Linear(8, 1), 0
        self.sampler = pysel.WeightedSampler(1 + X[:, 0].abs(), num_samples=48, replacement=False, key=0)

    def train_dataloader(self) -> DataLoader:
        dataset = TensorDataset(torch.arange(96), X, X.sum(1, keepdim=True))
        return DataLoader(dataset, batch_size=4, sampler=self.sampler, num_workers=2)

    def on_train_epoch_start(self) -> None:
        self.received = 0

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        index, inputs, targets = batch
        print(f"epoch {self.current_epoch} rank {self.global_rank}: {index.tolist()}", flush=True)
        self.received += len(index)
        return torch.nn.functional.mse_loss(self.layer(inputs), targets)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["sampler"] = self.sampler.state_dict(yielded=self.received)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.sampler.load_state_dict(checkpoint["sampler"])


if __name__ == "__main__":
    folder, steps = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else -1
    last, saves = folder / "last.ckpt", ModelCheckpoint(folder, save_last=True, every_n_train_steps=2)
    cpus = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
    trainer = Trainer(**cpus, max_epochs=3, max_steps=steps, callbacks=[saves], default_root_dir=folder, logger=False)
    trainer.fit(Model(), ckpt_path=last if last.exists() else None)
