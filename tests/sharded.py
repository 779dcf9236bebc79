"""Run by torchrun in test_pre_train.py: the model shared out among two processes, as --fsdp does on GPUs, on the CPU.

accelerate shards on GPUs only; here its state is told to, so that the same code runs over gloo.
"""

import dataclasses
import os
import sys
from pathlib import Path

import torch
from accelerate.utils import DistributedType

import pre_train
from utils.training.plan import Plan, Progress
from utils.training.processes import fsdp_plugin, host_all_reduce, start_accelerator
from utils.training.state import Checkpoints, read_state


def main() -> None:
    """Three steps, a checkpoint, three more; then the checkpoint again and the same three."""
    settings = dataclasses.replace(pre_train.settings_of(pre_train.parse()), fsdp=True)
    accelerator = start_accelerator(settings)
    accelerator.state.fsdp_plugin, accelerator.state.distributed_type = fsdp_plugin(), DistributedType.FSDP
    data, _ = pre_train.open_data(settings, accelerator)
    model, optimizer = pre_train.build(settings, data)
    plan = Plan(data, settings, model.config.window, accelerator.process_index, accelerator.num_processes)
    metadata = pre_train.run_metadata(settings, model.config, data, accelerator, {})
    checkpoints = Checkpoints(settings.ckpt_dir, None, accelerator, metadata, settings.to_config())
    model, optimizer = accelerator.prepare(model, optimizer)
    assert type(next(model.parameters())).__name__ == "DTensor"

    progress = Progress()
    sum_over_processes = host_all_reduce(accelerator)
    for name in ("a.pt", "b.pt", "c.pt"):
        for step in plan.steps(progress):
            progress = step.progress
            (targets,) = sum_over_processes(step.targets)
            pre_train.train_step(model, optimizer, step.batches, targets, accelerator, settings.max_grad_norm)
            if progress.step % 3 == 0:
                break
        checkpoints.save([name], model, optimizer, progress, 0.0)
        accelerator.wait_for_everyone()
        if name == "b.pt":
            saved = read_state(Path(settings.ckpt_dir) / "a.resume")
            progress = checkpoints.resume(saved, model, optimizer)
    accelerator.wait_for_everyone()
    torch.distributed.destroy_process_group()
    # Without Python's own end: on a busy machine torch 2.13 aborts in it now and then ("terminate called without an
    # active exception", no Python frame left), where a model was sharded over gloo. All is written by then.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
