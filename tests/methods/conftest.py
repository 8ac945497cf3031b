"""Fixtures that several tests of a method share; module-wide ones hold what no test changes."""

from types import SimpleNamespace

import pytest
from gan_digits import GAN, MODEL
from selmix_digits import START
from support import TINY, run_command

from ltbench.methods.parts.stages import Trained


@pytest.fixture(scope="session")
def teacher(digits_run):
    """The finished run of the session as a teacher."""
    return Trained(str(digits_run.folder))


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A classifier on long-tailed digits, an annotator on all of them, and a finished GAN."""
    home = tmp_path_factory.mktemp("gan")
    (home / "tiny.yaml").write_text(TINY)
    (home / "gan.yaml").write_text(GAN)
    net = [f"{MODEL}.backbone", "resnet32_cifar"]
    all_digits = ["--name", "annotator", "--data.init_args.profile", "natural", *net]
    for words in ([], [*all_digits, "--trainer.max_epochs", 2]):
        done = run_command("fit", "--config", "tiny.yaml", *words, cwd=home)
        assert done.code == 0, done.err
    classifier, annotator = next(home.glob("runs/tiny-*")), next(home.glob("runs/annotator-*"))
    words = [
        *("--config", home / "gan.yaml", f"{MODEL}.classifier.path", classifier),
        *(f"{MODEL}.annotator.path", annotator, f"{MODEL}.fid_features.path", annotator),
    ]
    done = run_command("fit", *words, cwd=home)
    assert done.code == 0, done.err
    (gan,) = home.glob("runs/gan-*")
    return SimpleNamespace(
        path=home, words=words, classifier=classifier, annotator=annotator, gan=gan, out=done.out
    )


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """The folder of a finished run on labelled images alone, not to be changed."""
    home = tmp_path_factory.mktemp("start")
    (home / "start.yaml").write_text(START)
    done = run_command("fit", "--config", home / "start.yaml", cwd=home)
    assert done.code == 0, done.err
    (folder,) = (home / "runs").iterdir()
    return folder
