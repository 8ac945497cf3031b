"""CBGAN: classifiers and sizes that are refused, and what is warned of."""

import shutil
import sys

import pytest
from gan_digits import MODEL
from support import run_command


def refuse(home, tmp_path, *words, without=()):
    kept = [w for i, w in enumerate(home.words) if not {i, i - 1} & set(without)]
    done = run_command("fit", *kept, *words, cwd=tmp_path)
    assert done.code == 2, done.err
    assert not list(tmp_path.rglob("record.json"))
    return done.err


def test_mistakes(home, tmp_path):
    annotator = [f"{MODEL}.annotator.path", home.classifier]
    assert "annotator" in refuse(home, tmp_path, *annotator)
    copied = shutil.copy(home.classifier / "checkpoints/last.ckpt", tmp_path / "copy.ckpt")
    assert "annotator" in refuse(home, tmp_path, f"{MODEL}.annotator.path", copied)
    assert "model.classifier.path" in refuse(home, tmp_path, without=[2])
    assert "model.annotator.path" in refuse(home, tmp_path, without=[4])
    size = f"{MODEL}.architecture.image_size"
    assert "image_size" in refuse(home, tmp_path, size, 16)
    assert "snresgan" in refuse(home, tmp_path, f"{MODEL}.architecture.family", "snresgan")
    bigger = ["--data.init_args.image_size", 16, size, 16]
    assert "resize: true" in refuse(home, tmp_path, *bigger)
    assert "cutout" in refuse(home, tmp_path, f"{MODEL}.diffaugment", "[cutoff]")
    assert "hinge" in refuse(home, tmp_path, f"{MODEL}.loss", "hinges")
    assert "ema_decay" in refuse(home, tmp_path, f"{MODEL}.ema_decay", 1)


def test_without_the_standard_features_the_way_out_is_named(home, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    assert "fid_features" in refuse(home, tmp_path, without=[6])


def test_a_classifier_of_other_classes(home, tmp_path, make_images):
    counts = {"ant": 20, "bee": 20}
    make_images(tmp_path / "images/train", counts, size=8)
    data = ["--data.init_args.source", "folder", "--data.init_args.root", tmp_path / "images"]
    err = refuse(home, tmp_path, *data, "--data.init_args.profile", "natural")
    assert "has 10 classes and 1 image channels" in err


def test_samples_are_resized_where_that_is_asked_for(home, tmp_path):
    bigger = ["--data.init_args.image_size", 16, f"{MODEL}.architecture.image_size", 16]
    short = ["--trainer.max_epochs", 1, f"{MODEL}.resize", "true"]
    done = run_command("fit", *home.words, *bigger, *short, cwd=tmp_path)
    assert done.code == 0, done.err


@pytest.mark.parametrize("role", ["classifier", "annotator"])
def test_an_untrained_judge_is_warned_of(home, tmp_path, role):
    untrained = ["--trainer.max_epochs", 1, f"{MODEL}.optimizer.init_args.lr", 0]
    run_command("fit", "--config", home.path / "tiny.yaml", *untrained, cwd=tmp_path)
    (run,) = (tmp_path / "runs").iterdir()
    words = [*home.words, f"{MODEL}.{role}.path", run, "--trainer.max_epochs", 1]
    with pytest.warns(UserWarning, match=f"{role} has a mean recall of .* 10.0%"):
        run_command("fit", *words, cwd=tmp_path)


@pytest.mark.filterwarnings("ignore:the annotator has a mean recall")
def test_an_annotator_of_the_long_tail_is_warned_of(home, tmp_path):
    words = ["--data.init_args.val_fraction", 0.2]  # as the classifier has it
    run_command("fit", "--config", home.path / "tiny.yaml", "--seed_everything", 4, cwd=tmp_path)
    (run,) = (tmp_path / "runs").iterdir()
    words = [*home.words, *words, f"{MODEL}.annotator.path", run, "--trainer.max_epochs", 1]
    with pytest.warns(UserWarning, match="annotator"):
        run_command("fit", *words, cwd=tmp_path)


def test_too_frequent_updates_are_warned_of(home, tmp_path):
    words = [f"{MODEL}.balance.update_every", 1, "--trainer.max_epochs", 1]
    with pytest.warns(UserWarning, match="update_every .* 3.2 images"):
        run_command("fit", *home.words, *words, cwd=tmp_path)
