"""What does a distilled step of DeiT-LT reach of the sum of its parts, student and teacher?

A training by ``configs/deitlt_tiny_cifar10.yaml`` (or another config of its method) through the
whole project, with a teacher as it starts, takes turns on one cached batch of the run's own mixed
images with

* ``student``: forward, both losses, backward and optimizer step;
* ``teacher``: the teacher's forward pass, without gradients, at the run's precision.
"""

import copy
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from timing import Candidate, Parser, Rounds, peak_memory, report
from trainings import CONFIGS, Pauses, train

from ltbench.data.datasets import Batch
from ltbench.methods.deit_lt.method import DeiTLT


def parts(trainer: L.Trainer, method: DeiTLT, batch: Batch) -> dict[str, Candidate]:
    """Return the parts of a step."""
    teacher = method.teacher
    assert teacher is not None
    prepared = method.prepare_step(batch)
    student = copy.copy(method)  # shares all but the network
    student._modules = {**method._modules, "net": copy.deepcopy(method.net)}
    student.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign]
    optimizer = method.optimizer(student.net.parameters())
    autocast = trainer.precision_plugin.forward_context

    def step() -> None:
        optimizer.zero_grad()
        with autocast():
            loss = student.loss_of(prepared)[0]
        loss.backward()
        optimizer.step()

    def teach() -> None:
        with autocast(), torch.no_grad():
            teacher(prepared["image"])

    return {"student": step, "teacher": teach}


def main(words: Sequence[str] | None = None) -> None:
    """Measure."""
    parser = Parser(__file__, __doc__, repeats=3)
    parser.add_argument("--config", type=Path, default=CONFIGS / "deitlt_tiny_cifar10.yaml")
    parser.add_argument("--teacher", default="resnet32_cifar", help="backbone of the teacher")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", choices=("bf16-mixed", "32-true"), default="bf16-mixed")
    parser.add_argument("--steps", type=int, default=4, help="steps a repeat")
    args = parser.parse_args(words)
    pauses = Pauses(Rounds(), parts, args.steps, args.repeats)
    train(
        args.config,
        pauses,
        args.root,
        {"teacher": {"name": args.teacher}},
        trainer__precision=args.precision,
        data__batch_size=args.batch_size,
        model__micro_batch="null",
    )
    rounds = pauses.rounds
    title = "images/s through the project / of student step and teacher"
    on_gpu = rounds.device.type == "cuda"
    report(
        args,
        [
            rounds.row(
                f"{title} together",
                lambda s: (s["student"] + s["teacher"]) / s["project"],
                ">= 0.9",
            ),
            rounds.row(
                f"{title} and augmentation together",
                lambda s: (s["student"] + s["teacher"] + s["augment"]) / s["project"],
            ),
        ],
        rounds,
        unit="images/s",
        config=args.config.name,
        teacher=args.teacher,
        batch_size=args.batch_size,
        images=args.root.name if args.root else "random, in memory",
        precision=args.precision,
        peak_memory_bytes=torch.cuda.max_memory_allocated() if on_gpu else peak_memory(),
    )


if __name__ == "__main__":
    main()
