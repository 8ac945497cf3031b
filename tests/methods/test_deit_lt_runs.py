"""DeiT-LT from the command line: record, exact resume, two processes."""

from pathlib import Path

import pytest
import torch
import yaml
from deit_digits import build
from sklearn.metrics import accuracy_score
from support import run_script

from ltbench import records
from ltbench.methods.deit_lt.method import DeiTLT
from ltbench.models import weights

RUN = """
seed_everything: 3
trainer: {max_epochs: 4, accelerator: cpu, devices: 1, enable_progress_bar: false}
model:
  class_path: ltbench.methods.deit_lt.method.DeiTLT
  init_args:
    backbone: deit_tiny_distilled_patch4_32
    backbone_args:
      {img_size: 8, patch_size: 4, embed_dim: 16, depth: 2, num_heads: 2, drop_path_rate: 0.1}
    reweighting: {start: 0.75}
    optimizer:
      class_path: torch.optim.AdamW
      init_args: {lr: 3.0e-3, weight_decay: 0.05}
    decay_norms: false
    lr_schedule: {class_path: ltbench.optim.schedules.DeiTCosine, init_args: {warmup: 0.1}}
    ema_decay: 0.9
    micro_batch: 16
data:
  class_path: LongTailDataModule
  init_args:
    source: digits
    imbalance_factor: 10
    largest: 60
    val_fraction: 0.2
    batch_size: 32
    augment: [{class_path: RandomCrop, init_args: {padding: 1}}]
"""


@pytest.fixture
def run(tmp_path, digits_run):
    path, config = tmp_path / "student.yaml", yaml.safe_load(RUN)
    config["model"]["init_args"]["teacher"] = {"path": str(digits_run.folder)}
    path.write_text(yaml.safe_dump(config))
    return path


def test_a_run_records_its_heads_and_its_teacher(ltbench, run, tmp_path, digits_run):
    done = ltbench("fit", "--config", run)
    assert done.code == 0, done.err
    assert "Teacher on test, %: accuracy" in done.out
    (folder,) = (tmp_path / "runs").iterdir()
    record = records.read_record(folder / "record.json")
    assert record["method"] == "deit_lt"
    (lineage,) = record["lineage"]
    theirs = records.read_record(digits_run.folder / "record.json")
    assert lineage["job_id"] == theirs["job_id"]
    accuracy = theirs["metrics"]["last"]["test"]["accuracy"]
    assert lineage["metrics"]["test"]["accuracy"] == pytest.approx(accuracy)
    metrics = record["metrics"]["last"]["test"]
    plain = {name for name in metrics if "/" not in name and name != "per_class_recall"}
    for head in ("cls", "dist"):
        assert {f"{head}/{name}" for name in plain} <= metrics.keys()

    model, data = build()
    data.setup()
    state = weights.read(folder / "checkpoints" / "last.ckpt")["state_dict"]
    model.net.load_state_dict({k[4:]: v for k, v in state.items() if k.startswith("net.")})
    images = data.dataset("test")
    with torch.no_grad():
        logits = model.eval().outputs(data.normalise(images.images))
    for head, scores in logits.items():
        name = f"{head}/accuracy" if head else "accuracy"
        expected = accuracy_score(images.labels, scores.argmax(1))
        assert metrics[name] == pytest.approx(expected), head
    torch.testing.assert_close(logits[""], (logits["cls"] + logits["dist"]) / 2)


def test_a_killed_run_goes_on_as_if_nothing_had_happened(ltbench, run, tmp_path, monkeypatch):
    """Stopped in the third of four epochs, with mixing, drop-path, averaging and micro-batches."""
    straight = tmp_path / "straight"
    straight.mkdir()
    assert ltbench("fit", "--config", run, cwd=straight).code == 0
    after = DeiTLT.after_step

    def stop(self, step):
        after(self, step)
        if self.trainer.global_step == 15:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DeiTLT, "after_step", stop)
        assert ltbench("fit", "--config", run).code == 130
    done = ltbench("fit", "--config", run)
    assert done.code == 0, done.err
    assert "Going on from" in done.out
    (one,), (other,) = ((place / "runs").iterdir() for place in (straight, tmp_path))
    assert (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    first, second = (records.read_record(folder / "record.json") for folder in (one, other))
    for key in ("metrics", "lineage", "steps", "images_seen"):
        assert first[key] == second[key], key
    a, b = (weights.read(folder / "checkpoints" / "last.ckpt") for folder in (one, other))
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(a[key][name], b[key][name]) for name in a[key])


@pytest.mark.ddp
@pytest.mark.slow
def test_two_processes_train_one_student(run, tmp_path):
    """Each has a teacher of its own; gradients of micro-batches are averaged once a step."""
    script = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parents[1])!r}]
import support, torch
from lightning.pytorch.callbacks import Callback
from ltbench.cli import main

class Keep(Callback):
    def on_train_end(self, trainer, module):
        state = [p.detach() for p in module.parameters()], module.lineage[0]["metrics"]
        torch.save(state, f"rank{{trainer.global_rank}}.pt")

if __name__ == "__main__":
    main()
"""
    (tmp_path / "processes.py").write_text(script)
    words = ["fit", "--config", run, "--trainer.devices", 2, "--trainer.strategy", "ddp"]
    words += ["--model.micro_batch", 8, "--model.ema_decay", "null"]
    words += ["--trainer.callbacks+=processes.Keep"]
    done = run_script(tmp_path / "processes.py", *words)
    assert done.stdout.count("Teacher on test") == 1
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(one, other) for one, other in zip(first[0], second[0], strict=True))
    assert repr(first[1]) == repr(second[1])  # some are NaN
    (folder,) = (tmp_path / "runs").iterdir()
    record = records.read_record(folder / "record.json")
    assert (record["world_size"], record["status"]) == (2, "done")
    found = records.read_record(Path(record["lineage"][0]["path"]).parents[1] / "record.json")
    expected = found["metrics"]["last"]["test"]["accuracy"]
    for metrics in (first[1], record["lineage"][0]["metrics"]):
        assert metrics["test"]["accuracy"] == pytest.approx(expected)
