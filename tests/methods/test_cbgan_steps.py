"""CBGAN: gradients, the averaged generator, several processes."""

from pathlib import Path

import pytest
import torch
from gan_digits import build, only_gan
from support import run_command, run_script
from torch import nn
from torch.testing import assert_close

from ltbench.methods.cbgan.method import CBGAN
from ltbench.methods.generative.judges import Judge, Normalise
from ltbench.methods.generative.module import GenerativeModule
from ltbench.models.gan import Architecture
from ltbench.records import read_record


def test_the_regulariser_reaches_the_generator_alone():
    model = build()
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(False)
    fake, _ = model._generated(16)
    model.regulariser(classifier(fake)).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.generator.parameters())
    others = [*model.discriminator.parameters(), *model.averaged.parameters()]
    assert all(p.grad is None for p in [*others, *classifier.parameters()])


def test_the_average_is_the_generator_until_its_start(monkeypatch):
    model = build(ema_decay=0.75, ema_start=2)
    iteration = {"now": 0}
    monkeypatch.setattr(CBGAN, "iteration", property(lambda self: iteration["now"]))
    history = []
    for now in range(1, 5):
        iteration["now"] = now
        with torch.no_grad():
            for tensor in model.generator.state_dict().values():
                tensor.add_(now)
        model._average()
        history.append({name: t.clone() for name, t in model.generator.state_dict().items()})
    for name, tensor in model.averaged.state_dict().items():
        second, third, fourth = (found[name] for found in history[1:])
        if tensor.is_floating_point():
            expected = 0.75 * (0.75 * second + 0.25 * third) + 0.25 * fourth
            assert_close(tensor, expected)
        else:
            assert torch.equal(tensor, fourth)
    model.train()
    assert not any(module.training for module in model.averaged.modules())


@pytest.mark.paper
@pytest.mark.parametrize("conditioning", ["none", "acgan"])
def test_a_discriminators_step_takes_two_power_iterations(conditioning, monkeypatch):
    """As released: real and generated images pass one after the other."""
    model = CBGAN(10, 1, Architecture("sndcgan", 8, 8, 16, conditioning))
    seen = []
    model.discriminator.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    monkeypatch.setattr(model, "real_images", lambda batch: batch["image"])
    monkeypatch.setattr(model, "_step", lambda *_: None)
    monkeypatch.setattr(model, "_log", lambda *_: None)
    model._discriminator_step({"image": torch.rand(6, 1, 8, 8) * 2 - 1, "label": torch.arange(6)})
    assert seen == [6, 6]


@pytest.mark.paper
def test_the_classifier_in_the_loop_takes_images_in_minus_1_to_1():
    """As released, whatever it was trained on; the annotator's are normalised."""
    judge = Judge.__new__(Judge)
    nn.Module.__init__(judge)
    judge.normalise, judge.classify = Normalise([0.2], [0.5], size=16), nn.Identity()
    images = torch.rand(3, 1, 8, 8) * 2 - 1
    larger = nn.functional.interpolate(images, 16, mode="bilinear")
    assert torch.equal(judge.as_they_are(images), larger)
    assert_close(judge(images), ((larger + 1) / 2 - 0.2) / 0.5)


def test_generative_modules_are_no_place_for_gan_details():
    """A class-conditional method to come needs no more than `sample` and `training_step`."""
    abstract = {n for n, m in vars(GenerativeModule).items() if hasattr(m, "__isabstractmethod__")}
    assert abstract == {"sample"}


@pytest.mark.ddp
@pytest.mark.slow
def test_two_processes_hold_the_same_gan_and_the_same_statistics(home, tmp_path):
    script = """
from pathlib import Path
import torch
from lightning.pytorch.callbacks import Callback
from ltbench.cli import main

class KeepState(Callback):
    def on_train_end(self, trainer, module):
        torch.save(module.state_dict(), f"rank{trainer.global_rank}.pt")

if __name__ == "__main__":
    import sys
    sys.path.insert(0, "TESTS")
    import support  # noqa: F401  (registers tiny_net)
    main()
""".replace("TESTS", str(Path(__file__).parents[1]))
    (tmp_path / "processes.py").write_text(script)

    def run(*words):
        done = run_script(tmp_path / "processes.py", *words)
        assert "Warning" not in done.stderr
        return done.stdout

    two = ["--trainer.devices", 2, "--trainer.strategy", "ddp"]
    run("fit", *home.words, *two, "--trainer.callbacks+=processes.KeepState")
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    moving = ("running_mean", "running_var", "_u", "_v")  # of a rank's own images
    for name, ours in first.items():
        assert name.endswith(moving) or torch.equal(ours, second[name]), name
    folder = only_gan(tmp_path)
    found = read_record(folder / "record.json")
    assert (found["world_size"], found["status"]) == (2, "done")
    assert sum(found["metrics"]["last"]["test"]["generated_classes"]) == 90

    last = ["--ckpt_path", folder / "checkpoints/last.ckpt"]
    together = run("test", *home.words, *two, *last)
    alone = run_command("test", *home.words, *last, cwd=tmp_path).out
    assert together == alone
