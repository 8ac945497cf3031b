import json

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from digit_runs import analyze, copy_of

from ltbench.analysis import hessian
from ltbench.data.datamodule import LongTailDataModule
from ltbench.models import build_backbone

SHORT = ("--classes", "0", "9", "--steps", "12", "--runs", "2")


def exact_extremes(run, label):
    """Smallest and largest eigenvalue and trace of a class's Hessian, formed whole."""
    checkpoint = torch.load(run.last, weights_only=True)
    net = build_backbone("tiny_net", 10, 1).eval()
    state = checkpoint["state_dict"].items()
    net.load_state_dict({k.removeprefix("net."): v for k, v in state if k.startswith("net.")})
    net.double()
    data = LongTailDataModule("digits", imbalance_factor=10, largest=60, val_fraction=0.2)
    data.setup()
    chosen = data.splits["train"].labels == label
    images = data.normalise(data.dataset("train").images[chosen]).double()
    labels = torch.full((int(chosen.sum()),), label)
    names, shapes = zip(*((n, p.shape) for n, p in net.named_parameters()), strict=True)
    flat = torch.cat([p.detach().reshape(-1) for p in net.parameters()])

    def loss(vector):
        pieces = vector.split([shape.numel() for shape in shapes])
        parts = {n: v.view(s) for n, v, s in zip(names, pieces, shapes, strict=True)}
        return F.cross_entropy(torch.func.functional_call(net, parts, (images,)), labels)

    exact = torch.autograd.functional.hessian(loss, flat)
    values = torch.linalg.eigvalsh(exact)
    return float(values[0]), float(values[-1]), float(exact.trace()), float(loss(flat))


def test_spectra_of_a_trained_network_end_where_those_of_its_exact_hessian_do(
    ltbench, digits_run, tmp_path
):
    words = ("--classes", "9", "--steps", "80", "--runs", "3", "--batch_size", "2")
    result = analyze(ltbench, "hessian", digits_run.folder, tmp_path / "a", *words)
    (entry,) = result["classes"].values()
    low, high, trace, loss = exact_extremes(digits_run, 9)
    assert entry["lambda_min"] == pytest.approx(low, rel=1e-4)
    assert entry["lambda_max"] == pytest.approx(high, rel=1e-4)
    assert entry["loss"] == pytest.approx(loss, rel=1e-5)
    assert entry["ratio"] == pytest.approx(-low / high, rel=1e-3)
    assert abs(entry["trace"] - trace) < 5 * entry["trace_error"]
    assert entry["parameters"] == 16 * 9 + 2 * 16 + 64 * 10 + 10
    assert entry["images"] == entry["train_images"] == 5
    assert entry["group"] == "tail"
    assert result["groups"]["tail"]["lambda_min"] == entry["lambda_min"]
    assert result["figures"] == ["hessian.png"]


def test_an_interrupted_call_goes_on_and_equals_one_that_was_not(
    ltbench, digits_run, tmp_path, monkeypatch
):
    whole = analyze(ltbench, "hessian", digits_run.folder, tmp_path / "a", *SHORT)
    assert set(whole["figures"]) == {"hessian.png"}
    calls, lanczos = [], hessian.lanczos

    def interrupted(*args):
        if calls:
            raise KeyboardInterrupt
        calls.append(args)
        return lanczos(*args)

    command = ("analyze", "hessian", "--run", digits_run.folder, "--output", tmp_path / "b")
    monkeypatch.setattr(hessian, "lanczos", interrupted)
    assert ltbench(*command, "--device", "cpu", *SHORT).code == 130
    left = json.loads((tmp_path / "b/hessian.json").read_text())
    assert list(left["classes"]) == ["0"]
    monkeypatch.setattr(hessian, "lanczos", lambda *args: calls.append(args) or lanczos(*args))
    resumed = analyze(ltbench, "hessian", digits_run.folder, tmp_path / "b", *SHORT)
    assert len(calls) == 2  # the second class alone was left
    assert resumed["classes"] == whole["classes"]
    assert resumed["summary"] == whole["summary"]


def test_more_runs_add_to_those_there_and_runs_differ_by_their_seed(ltbench, digits_run, tmp_path):
    few = analyze(ltbench, "hessian", digits_run.folder, tmp_path, *SHORT)
    more = analyze(
        ltbench, "hessian", digits_run.folder, tmp_path, *SHORT[:-1], "3", "--classes", "9"
    )
    assert more["classes"]["0"] == few["classes"]["0"]
    runs = more["classes"]["9"]["runs"]
    assert runs["0"] == few["classes"]["9"]["runs"]["0"]
    assert len({run["nodes"][0] for run in runs.values()}) == 3


def test_spectra_do_not_depend_on_how_many_runs_share_the_memory(
    ltbench, digits_run, tmp_path, monkeypatch
):
    together = analyze(ltbench, "hessian", digits_run.folder, tmp_path / "a", *SHORT)
    monkeypatch.setattr(hessian, "BASIS_BYTES", 1)
    alone = analyze(ltbench, "hessian", digits_run.folder, tmp_path / "b", *SHORT)
    for label, entry in together["classes"].items():
        for name, run in entry["runs"].items():
            expected = alone["classes"][label]["runs"][name]["nodes"]
            assert run["nodes"] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_another_measurement_does_not_mix_with_what_is_there(
    ltbench, refused, digits_run, tmp_path
):
    analyze(ltbench, "hessian", digits_run.folder, tmp_path, *SHORT)
    command = ("analyze", "hessian", "--run", digits_run.folder, "--output", tmp_path)
    message = refused(*command, "--device", "cpu", *SHORT[:3], "--steps", "9")
    assert "steps: 12 there, 9 now" in message
    assert "--fresh" in message
    words = (*SHORT[:3], "--steps", "9", "--runs", "1", "--fresh")
    fresh = analyze(ltbench, "hessian", digits_run.folder, tmp_path, *words)
    assert len(fresh["classes"]["9"]["runs"]["0"]["nodes"]) == 9


def test_the_loss_of_the_run_and_fewer_images_are_measured_on_demand(ltbench, digits_run, tmp_path):
    words = ("--classes", "0", "--steps", "5", "--runs", "1", "--images", "7")
    own = analyze(ltbench, "hessian", digits_run.folder, tmp_path / "a", *words, "--loss", "run")
    plain = analyze(ltbench, "hessian", digits_run.folder, tmp_path / "b", *words)
    assert own["classes"]["0"]["images"] == 7
    assert own["classes"]["0"]["train_images"] == 48
    # The run's loss is plain cross-entropy, so the two agree but for what they are called.
    assert own["classes"] == plain["classes"]
    assert "the loss of the run" in own["title"]


def test_by_default_all_of_ten_classes_are_drawn_and_another_run_beside_them(
    ltbench, digits_run, tmp_path
):
    folder = copy_of(digits_run, tmp_path)
    words = ("--steps", "4", "--runs", "1", "--split", "test", "--images", "4")
    first = analyze(ltbench, "hessian", folder, folder / "analysis", *words)
    assert list(first["classes"]) == [str(c) for c in range(10)]  # by frequency
    assert set(first["figures"]) == {"hessian-test.png", "hessian-test-classes.png"}
    assert {g: e["classes"] for g, e in first["groups"].items()} == {"head": 3, "mid": 4, "tail": 3}
    second = analyze(
        ltbench, "hessian", digits_run.folder, tmp_path / "b", *words, "--beside", folder
    )
    assert {"hessian-test-beside.png", "hessian-test-ratios.png"} <= set(second["figures"])
    table = pd.read_csv(tmp_path / "b" / "hessian-test-beside.csv", dtype={"class": str})
    own, other = digits_run.folder.name, f"{folder.name} (2)"  # of the same name
    assert list(table["run"].unique()) == [own, other]
    stored = [entry["ratio"] for entry in first["classes"].values()]
    assert table["ratio"][table["run"] == other].tolist() == pytest.approx(stored)
    tail = dict(second["summary"])["tail: |λmin| / λmax of each run"]
    assert tail == ", ".join(
        f"{run} {first['groups']['tail']['ratio']:.3g}" for run in (own, other)
    )
    ratios = [e["ratio"] for e in first["classes"].values() if e["group"] == "tail"]
    assert first["groups"]["tail"]["ratio"] == pytest.approx(np.mean(ratios))


def test_what_was_measured_otherwise_or_of_no_common_class_is_not_compared(
    ltbench, refused, digits_run, tmp_path
):
    analyze(ltbench, "hessian", digits_run.folder, tmp_path / "a", *SHORT)
    beside = ("--beside", tmp_path / "a/hessian.json")
    command = ("analyze", "hessian", "--run", digits_run.folder, "--output", tmp_path / "b")
    message = refused(*command, "--device", "cpu", *SHORT[:3], "--steps", "9", *beside)
    assert "steps: 12 there, 9 here" in message
    message = refused(*command, "--device", "cpu", "--classes", "1", *SHORT[3:], *beside)
    assert "no class in common" in message
    assert "ltbench analyze hessian" in refused(*command, "--beside", tmp_path)


def test_a_class_that_is_not_there_is_named(refused, digits_run, tmp_path):
    command = ("analyze", "hessian", "--run", digits_run.folder, "--output", tmp_path)
    assert "'cat'" in refused(*command, "--device", "cpu", "--classes", "cat")
