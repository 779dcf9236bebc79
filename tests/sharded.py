"""Run by torchrun in test_pre_train.py: the model shared out among two processes, as --fsdp does on GPUs, on the CPU.

accelerate shards on GPUs only; here its state is told to, so that the same code runs over gloo.
"""

import sys
from pathlib import Path

import torch
from accelerate.utils import DistributedType

import pre_train
from utils.training.plan import Place, Plan
from utils.training.processes import HostSum, sharding, start_accelerator
from utils.training.state import Checkpoints, read_state


def main() -> None:
    """Three steps, a checkpoint, three more; then the checkpoint again and the same three."""
    args = pre_train.flags().parse_args(sys.argv[1:])
    args.fsdp = True
    accelerator = start_accelerator(args)
    accelerator.state.fsdp_plugin, accelerator.state.distributed_type = sharding(), DistributedType.FSDP
    data, _ = pre_train.open_data(args, accelerator)
    model, optimizer = pre_train.build(args, data)
    plan = Plan(data, args, model.config.window, accelerator.process_index, accelerator.num_processes)
    checkpoints = Checkpoints(args.ckpt_dir, None, accelerator, pre_train.facts(args, model.config, data, accelerator))
    model, optimizer = accelerator.prepare(model, optimizer)
    assert type(next(model.parameters())).__name__ == "DTensor"

    place = Place()
    for name in ("a.pt", "b.pt", "c.pt"):
        for work in plan.work(place):
            place = work.place
            (targets,) = HostSum(accelerator)(work.targets)
            pre_train.train_step(model, optimizer, work.batches, targets, accelerator, args.max_grad_norm)
            if place.step % 3 == 0:
                break
        checkpoints.save([name], model, optimizer, place, 0.0)
        accelerator.wait_for_everyone()
        if name == "b.pt":
            saved = read_state(Path(args.ckpt_dir) / "a.resume")
            place = checkpoints.go_on_from(saved, model, optimizer)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
