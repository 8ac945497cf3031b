"""The progress bar: what it shows, and how rarely it looks."""

import re
from types import SimpleNamespace

from ltbench.runs.callbacks import progress
from ltbench.runs.callbacks.progress import Progress


def test_progress_says_when_the_whole_training_ends(monkeypatch):
    monkeypatch.setattr(progress.RichProgressBar, "on_train_start", lambda *args: None)
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    logged = {"train/loss_step": 0.5, "train/loss_epoch": 0.7, "train/lr": 0.1, "val/accuracy": 1}
    trainer = SimpleNamespace(
        global_step=100,
        estimated_stepping_batches=400,
        callback_metrics=logged,
        progress_bar_metrics={"train/mine": 3.0},  # of a method that logs with prog_bar
        loggers=[],
    )
    bar = Progress()
    bar.on_train_start(trainer, None)  # resumed at step 100
    assert "ends in" not in bar.get_metrics(trainer, None)
    now, trainer.global_step = 1050.0, 200
    items = bar.get_metrics(trainer, None)
    assert items == {
        "loss": 0.5,
        "train/mine": 3.0,
        "ends in": "0:01:40",
    }  # 200 steps left at half a second each


def test_the_bar_reads_the_loss_and_draws_now_and_then_and_after_the_last_step(monkeypatch):
    clock, reads, draws, bar = [0.0], [], [], Progress()
    monkeypatch.setattr(progress, "DRAWS", 4)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    theirs = progress.RichProgressBar
    monkeypatch.setattr(theirs, "_update_metrics", lambda *args: reads.append(round(clock[0], 1)))
    monkeypatch.setattr(theirs, "refresh", lambda *args, **how: draws.append((clock[0], how)))

    def count(self, trainer, module, *rest):
        self.refresh()
        self._update_metrics(trainer, module)
        self.refresh()

    monkeypatch.setattr(theirs, "on_train_batch_end", count)
    for step in range(8):
        trainer = SimpleNamespace(is_last_batch=step == 7, sanity_checking=False)
        bar.on_train_batch_end(trainer, None, None, None, step)
        clock[0] += 0.1
    assert reads == [0.0, 0.3, 0.6, 0.7]
    assert [round(at, 1) for at, _ in draws] == [0.0, 0.3, 0.6]
    assert all(how == {"hard": True} for _, how in draws)  # here, and not by Lightning's thread
    bar._update_metrics(trainer, None)  # as after an epoch
    assert len(reads) == 5
    bar.refresh()
    bar.refresh(hard=True)  # asked for, it draws at any time
    assert len(draws) == 4


def test_a_line_of_80_letters_holds_it_after_a_look_at_validation_too(ltbench, tiny, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    words = ("--trainer.num_sanity_val_steps", 1, "--trainer.enable_progress_bar", "true")
    done = ltbench("fit", "--config", tiny, *words)
    assert done.code == 0, done.err
    assert re.search(r"^Epoch 3/3 .* 7/7 .* loss: \d\.\d+ ends in: 0:00:00 *$", done.out, re.M)
