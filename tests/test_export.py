"""A finished run as one file that needs no ltbench."""

import json
import shutil

import numpy as np
import pytest
import torch

import ltbench as package
from ltbench.data.sources.folder import image_files
from ltbench.errors import UserError
from ltbench.runs import export


@pytest.fixture(scope="module", params=["onnx", "pt2", "safetensors"])
def file(request, folder_run, tmp_path_factory):
    """What the command writes for the run on a folder, in each format."""
    path = tmp_path_factory.mktemp("export") / f"model.{request.param}"
    export.export_command(
        ["--run", str(folder_run), "--output", str(path), "--license", "CC-BY-4.0"]
    )
    return path


def metadata(path):
    """What a user reads in the file, by the format's own library."""
    if path.suffix == ".onnx":
        import onnxruntime

        return onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map["ltbench"]
    if path.suffix == ".pt2":
        extra = {"ltbench": ""}
        torch.export.load(path, extra_files=extra)
        return extra["ltbench"]
    from safetensors import safe_open

    with safe_open(path, "pt") as stored:
        return stored.metadata()["ltbench"]


def test_it_says_what_it_needs_to_be_served(file, folder_run):
    notes = json.loads(metadata(file))
    assert notes["class_names"] == ["ant", "bee", "cat"]
    assert notes["input"] == {
        "pixels": "uint8, RGB",
        "shape": ["N", 3, 10, 10],
        "resize_shorter_side": 11,
        "interpolation": "bilinear",
        "crop": "centre",
    }
    assert notes["license"] == "CC-BY-4.0"
    record = json.loads((folder_run / "record.json").read_text())
    assert notes["job_id"] == record["job_id"]


@pytest.mark.parametrize("images", [1, 5])
def test_any_number_of_new_images_gets_the_probabilities_of_torch(file, folder_run, images):
    run = package.open_run(folder_run, device="cpu")
    pixels = run.squares(image_files(folder_run.parents[1] / "new")[:images])
    model = export.Classifier(run)
    with torch.inference_mode():
        expected = model(pixels)
    _, compute = export.FORMATS[file.suffix]
    found = compute(file.read_bytes(), model, pixels)
    assert found.shape == (images, 3)
    assert torch.allclose(found, expected, atol=1e-5)
    # the run itself predicts in bfloat16
    assert np.abs(expected.numpy() - run.predict(pixels).probabilities).max() < 0.02


def test_weights_in_safetensors_build_the_network_again(folder_run, tmp_path):
    import timm
    from safetensors.torch import load_file

    path = tmp_path / "model.safetensors"
    export.export_command(["--run", str(folder_run), "--output", str(path)])
    network = json.loads(metadata(path))["network"]
    assert network.pop("head") == "linear"
    model = timm.create_model(network.pop("name"), **network)
    model.load_state_dict(load_file(path))


def test_a_file_that_computes_something_else_is_not_written(folder_run, tmp_path, monkeypatch):
    def broken(content, model, images):
        return model(images).roll(1, 1)

    monkeypatch.setitem(export.FORMATS, ".pt2", (export.to_program, broken))
    path = tmp_path / "model.pt2"
    with pytest.raises(UserError, match="differ"):
        export.export_command(["--run", str(folder_run), "--output", str(path)])
    assert not any(tmp_path.iterdir())


def test_a_run_without_its_images_is_compared_on_noise(folder_run, tmp_path, capsys):
    alone = shutil.copytree(folder_run, tmp_path / "alone")
    export.export_command(["--run", str(alone), "--output", str(tmp_path / "model.safetensors")])
    assert "noise" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--output", "model.tflite"), "model.tflite"),
        (("--output", "model.pt2", "--run", "nothing"), "nothing"),
        (("--output", "model.pt2", "--images", "nothing"), "nothing"),
    ],
)
def test_bad_input(refused, folder_run, words, named):
    assert named in refused("export", "--run", folder_run, *words)


def test_onnx_needs_its_packages(folder_run, monkeypatch, tmp_path):
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(UserError, match="onnxscript"):
        export.export_command(["--run", str(folder_run), "--output", str(tmp_path / "m.onnx")])
