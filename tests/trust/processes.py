"""Real processes that start fast: forked from one that has imported everything already."""

import gc
import json
import multiprocessing
import os
import resource
import signal
import socket
import sys
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace

import support  # noqa: F401  (registers tiny_net)
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch.optim import optimizer

import ltbench.runs.training  # noqa: F401  (so that no process imports it again)
from ltbench.cli import main
from ltbench.optim.sam import SAM, ascend, weights_restored
from ltbench.runs.callbacks.run_record import RunRecord


def start(target, *args):
    """Start a process that calls a function of a module of the tests."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # Python < 3.13 preloads nothing without
    forkserver.ensure_running()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before
    process = context.Process(target=target, args=args)
    process.start()
    return process


def start_command(words, cwd, moment=None, **environment):
    """Start ``ltbench`` in folder ``cwd``; what it prints goes to ``out`` and ``err`` there.

    Args:
        words: The command line.
        cwd: The working folder.
        moment: Kind and number of the event at which a signal is sent; see :func:`signal_at`.
        **environment: Variables set for it.
    """
    words = [str(word) for word in words]
    return start(_command, words, str(cwd), moment, environment)


def end(process, cwd, rank="", timeout=300):
    """Wait for a command to end; return its code, stdout and stderr."""
    process.join(timeout)
    code = process.exitcode
    process.kill()
    out, err = (Path(cwd, f"{name}{rank}").read_text() for name in ("out", "err"))
    assert code is not None, f"it hangs: {err}"
    return SimpleNamespace(code=code, out=out, err=err)


def run(words, cwd, moment=None, timeout=300, **environment):
    """Run a command to its end; see :func:`start_command`."""
    return end(start_command(words, cwd, moment, **environment), cwd, timeout=timeout)


def run_ranks(words, cwd, ranks, moment=None, only=None):
    """Run a command once a rank, as ``torchrun`` would; return what became of each.

    Args:
        words: The command line.
        cwd: The working folder.
        ranks: How many.
        moment: See :func:`start_command`; on each rank, or on one.
        only: That one.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {
        "TORCHELASTIC_RUN_ID": "tests",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "GROUP_RANK": "0",
        "LTBENCH_TRUST": "processes",  # whose callbacks are used
    }
    words = [*words, "--trainer.devices", ranks]
    words += ["--trainer.strategy", "ddp"] if ranks > 1 else []
    started = [
        start_command(
            words,
            cwd,
            moment if only in (None, rank) else None,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            **world,
        )
        for rank in range(ranks)
    ]
    return [end(process, cwd, rank) for rank, process in enumerate(started)]


class Keep(Callback):
    """Save, as ``rank<n>of<N>.pt``, what a rank holds at the end of a training."""

    def on_train_end(self, trainer, pl_module):
        averages = [c for c in trainer.callbacks if isinstance(c, WeightAveraging)]
        (record,) = (c for c in trainer.callbacks if isinstance(c, RunRecord))
        found = {
            "model": pl_module.state_dict(),
            "average": [c._average_model.state_dict() for c in averages],
            "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
            "traces": record.traces,
            "history": record.history,
        }
        torch.save(found, f"rank{trainer.global_rank}of{trainer.world_size}.pt")


class SAMOfTwoHalves(SAM):
    """What ``sync_ascent: false`` means, in one process: each half ascends along its own gradient.

    The halves are the rows that two ranks would be dealt.
    """

    def _backward(self, step):
        losses, found = [], []
        for half in (slice(0, None, 2), slice(1, None, 2)):
            step.module.zero_grad()
            losses.append(step.run(half))
            params = [p for p in step.module.parameters() if p.grad is not None]
            with weights_restored(params):
                ascend(params, self.radius(step.epoch, step.epochs))
                step.module.zero_grad()
                step.run(half)
            found.append([p.grad.clone() for p in params])
        for p, one, other in zip(params, *found, strict=True):
            p.grad = (one + other) / 2
        return torch.stack(losses).mean()


class Measure(Callback):
    """Save, as ``measured<n>of<N>.json``, what a rank found in a test."""

    def on_test_end(self, trainer, pl_module):
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        path = Path(f"measured{trainer.global_rank}of{trainer.world_size}.json")
        path.write_text(json.dumps(found | pl_module.test_details()))


class Watch(Callback):
    """Save, as ``watched.json``, what the process holds at the end of each epoch."""

    def __init__(self):
        self.seen = []

    def on_train_epoch_end(self, trainer, pl_module):
        (record,) = (c for c in trainer.callbacks if isinstance(c, RunRecord))
        gc.collect()
        # By type(): isinstance() would wake what warns of itself.
        tensors = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
        kept = sum(map(len, record.traces.values()))  # an array an epoch, for the record
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.seen.append(
            {
                "step": trainer.fit_loop.total_batch_idx + 1,
                "files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
                "tensors": len(tensors) - kept,
                "megabytes": pages * resource.getpagesize() / 2**20,
            }
        )

    def on_train_end(self, trainer, pl_module):
        Path("watched.json").write_text(json.dumps(self.seen))


def _command(words, cwd, moment, environment):
    os.chdir(cwd)
    os.environ.update(environment)
    for number, name in ((1, "out"), (2, "err")):
        path = name + environment.get("RANK", "")
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    if moment:
        signal_at(*moment)
    main(words)


def signal_at(kind, count, number=signal.SIGKILL, group=False):
    """Send this process a signal at the ``count``-th event of a kind.

    Args:
        kind: ``step``, between a backward pass and the step along its gradient; ``evaluation``, a
            module's forward pass in evaluation mode; the name of a file, of which one half is
            written beside its place by then; or ``time``, wherever the process is after ``count``
            seconds on a processor: the kernel ends it then, with SIGPROF.
        count: From 1 on.
        number: The signal.
        group: Whether all processes that this one starts get it, too.
    """
    left = count
    if group:
        os.setpgrp()

    def event():
        nonlocal left
        left -= 1
        if left == 0:
            (os.killpg if group else os.kill)(os.getpid(), number)

    def forward(module, inputs):
        if not module.training:
            event()

    def audit(name, args):
        if name == "os.rename" and Path(args[1]).name == kind:
            if left == 1:
                os.truncate(args[0], Path(args[0]).stat().st_size // 2)
            event()

    if kind == "time":
        signal.setitimer(signal.ITIMER_PROF, count)
    elif kind == "step":
        optimizer.register_optimizer_step_pre_hook(lambda *_: event())
    elif kind == "evaluation":
        torch.nn.modules.module.register_module_forward_pre_hook(forward)
    else:
        sys.addaudithook(audit)
