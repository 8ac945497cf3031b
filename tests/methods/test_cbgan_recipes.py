"""CBGAN's baselines and shipped configs: the published constants."""

from pathlib import Path

import pytest
import yaml
from gan_digits import MODEL, build, only_gan, state
from support import run_command

from ltbench.methods.cbgan.method import CBGAN
from ltbench.models.gan import Architecture
from ltbench.records import read_record


@pytest.mark.parametrize("loss", ["hinge", "relativistic_average"])
@pytest.mark.parametrize("conditioning", ["acgan", "projection"])
def test_conditional_baselines_with_several_steps(home, tmp_path, conditioning, loss):
    words = [
        *(f"{MODEL}.balance", "null", f"{MODEL}.architecture.conditioning", conditioning),
        *(f"{MODEL}.loss", loss, f"{MODEL}.diffaugment", "[color, translation, cutout]"),
        *(f"{MODEL}.discriminator_steps", 2, "--trainer.max_epochs", 2),
    ]
    done = run_command("fit", *home.words, *words, cwd=tmp_path)
    assert done.code == 0, done.err
    record = read_record(only_gan(tmp_path) / "record.json")
    batches = 2 * -(-record["data"]["images"]["train"] // 32)
    assert record["steps"] == batches + batches // 2
    names = state(only_gan(tmp_path))
    assert ("generator.blocks.0.norm.gain.weight" in names) == (conditioning != "none")
    assert not any(name.startswith("regulariser") for name in names)


CONFIGS = {p.stem: p for p in sorted(Path(__file__).parents[2].glob("configs/cbgan_*.yaml"))}


def read(name):
    return yaml.safe_load(CONFIGS[name].read_text())


def test_every_config_is_there():
    names = {"cifar10", "cifar10_baseline", "digits", "digits_baseline", "inat2019", "lsun"}
    assert CONFIGS.keys() == {f"cbgan_{name}" for name in names}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_shipped_config_runs_to_its_record(home, name, tmp_path):
    """With small networks, on digits of the size that it asks for."""
    config = read(name)
    architecture = config["model"]["init_args"]["architecture"]
    config["model"]["init_args"] |= {"samples": 20, "watch_samples": 20, "resize": True}
    architecture |= {"width": 2, "latent": 4}
    for option in ("largest", "num_workers"):
        config["data"]["init_args"].pop(option, None)
    digits = {"source": "digits", "profile": "natural", "image_size": architecture["image_size"]}
    config["data"]["init_args"] |= digits
    config["trainer"] |= {"accelerator": "cpu", "enable_progress_bar": False}
    config["trainer"] |= {"max_epochs": 1, "limit_train_batches": 2, "check_val_every_n_epoch": 1}
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    done = run_command("fit", "--config", path, *home.words[2:], cwd=tmp_path)
    assert done.code == 0, done.err
    (folder,) = tmp_path.glob(f"runs/{name}-*")
    record = read_record(folder / "record.json")
    assert (record["status"], record["method"], record["steps"]) == ("done", "cbgan", 4)
    assert sum(record["metrics"]["last"]["test"]["generated_classes"]) == 20
    again = run_command("fit", "--config", folder / "config.yaml", cwd=tmp_path)
    assert f"{folder.name} is done already" in again.out


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.endswith("_baseline")])
def test_a_baseline_is_its_config_without_the_regulariser(name):
    with_it, without = read(name.removesuffix("_baseline")), read(name)
    assert with_it["model"]["init_args"].pop("balance")
    assert with_it == without


@pytest.mark.paper
def test_the_cifar_config_has_the_published_constants():
    config = read("cbgan_cifar10")
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert model["architecture"]["family"] == "sndcgan"
    assert model["loss"] == "relativistic"
    assert model["balance"] == {
        "strength": 10,
        "forgetting": 0.5,
        "update_every": 2000,
        "start": 50,
        "pending": 512,
    }
    assert model["optimizer"]["init_args"] == {"lr": 2e-4, "betas": [0.5, 0.999], "eps": 1e-6}
    assert (model["ema_decay"], model["ema_start"], model["samples"]) == (0.9999, 20_000, 50_000)
    assert (data["batch_size"], data["imbalance_factor"], data.get("augment")) == (256, 100, None)
    batches = -(-12_406 // 256)
    assert 0 <= config["trainer"]["max_epochs"] * batches - 100_000 < batches
    whole = read("cbgan_lsun")
    lsun = whole["model"]["init_args"]
    assert (lsun["ema_decay"], lsun["ema_start"]) == (0.9999, 20_000)
    assert 0 <= whole["trainer"]["max_epochs"] * -(-72_892 // 256) - 100_000 < 285
    assert lsun["optimizer"]["init_args"] == {"lr": 2e-4, "betas": [0.0, 0.999], "eps": 1e-6}
    for name in ("cbgan_lsun", "cbgan_inat2019"):
        networks = read(name)["model"]["init_args"]["architecture"]
        assert (networks["family"], networks["image_size"]) == ("snresgan_inplace", 64)
    assert read("cbgan_inat2019")["model"]["init_args"]["balance"]["forgetting"] == 0.005


@pytest.mark.parametrize(
    ("family", "told"), [("sndcgan", False), ("snresgan", True), ("snresgan_inplace", False)]
)
def test_a_discriminator_that_is_not_the_released_one_is_told(family, told):
    model = CBGAN(10, 3, Architecture(family, image_size=32, width=2, latent=4))
    ((_, applies),) = (
        (text, when) for text, when in CBGAN.paper.deviations.items() if "shortcuts" in text
    )
    assert applies(model) == told


def test_the_default_optimizer_is_the_published_one():
    (optimizer,) = {type(o): o.defaults for o in build().configure_optimizers()}.values()
    assert (optimizer["lr"], optimizer["betas"], optimizer["eps"]) == (2e-4, (0.5, 0.999), 1e-6)
