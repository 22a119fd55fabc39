"""Hugging Face's Trainer: it deals out batches through Accelerate, and skips what was trained when it resumes.

    torchrun --nproc-per-node 2 examples/hf_trainer.py RUN 8  # its time is up after 8 steps, within epoch 1
    torchrun --nproc-per-node 2 examples/hf_trainer.py RUN    # goes on with the samples left

``rank=0, num_replicas=1``: each process's sampler yields all samples, of which the Trainer takes a share. No
sampler's state is saved, or needed: an epoch is a function of key and epoch. In the resumed one the Trainer's
``set_epoch`` does not reach the sampler if there are several processes (Accelerate's ``skip_first_batches``): hence
the callback. Epochs are counted in steps, and steps once: keep the number of processes, and epochs of equal length.
"""

import sys
from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

import pysel


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 1)

    def forward(self, index: torch.Tensor, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        print(f"epoch {int(trainer.state.epoch)} rank {trainer.args.process_index}: {index.tolist()}", flush=True)
        return {"loss": torch.nn.functional.mse_loss(self.layer(inputs)[:, 0], labels)}


class Selected(Trainer):
    def _get_train_sampler(self, train_dataset=None) -> torch.utils.data.Sampler:
        return sampler


class NameEpoch(TrainerCallback):
    def on_epoch_begin(self, args, state, control, **others) -> None:
        sampler.set_epoch(int(state.epoch))

    def on_step_end(self, args, state, control, **others) -> None:
        control.should_training_stop |= state.global_step == steps


folder, steps = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
x = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
dataset = [{"index": torch.tensor(row), "inputs": x[row], "labels": x[row].sum()} for row in range(96)]
selector = pysel.selection.DynamicSelector.from_features(x, keep_ratio=0.5, epochs=4, num_factors=32, k=4, key=0)
sampler = pysel.SelectionSampler(selector, key=0, rank=0, num_replicas=1)
arguments = TrainingArguments(
    folder, per_device_train_batch_size=4, num_train_epochs=3, save_steps=2, use_cpu=True, report_to="none",
    disable_tqdm=True,
)  # fmt: skip
trainer = Selected(Model(), arguments, train_dataset=dataset, callbacks=[NameEpoch()])
trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.exists() else None)
trainer.accelerator.end_training()  # a process that ends with a group alive may abort
