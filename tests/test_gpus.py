"""Which GPUs there are, and that one that was asked for and is missing is an error."""

import pytest

from ltbench.bench.run.launchers import Local
from ltbench.errors import UserError
from ltbench.runs import gpus
from ltbench.runs.experiment import device_of

UUID = "GPU-11111111-2222-3333-4444-555555555555"
WHOLE = f"GPU 0: NVIDIA H200 (UUID: {UUID})"
DIVIDED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
  MIG 1g.5gb      Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 3g.20gb     Device  1: (UUID: MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb)
"""
OLD = """\
GPU 0: A100-SXM4-40GB (UUID: GPU-aa)
  MIG 1g.5gb Device 0: (UUID: MIG-GPU-aa/1/0)
GPU 1: A100-SXM4-40GB (UUID: GPU-bb)
"""


@pytest.fixture
def nvidia_smi(monkeypatch, tmp_path):
    """A writer of an ``nvidia-smi`` that prints a text."""
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def write(text, code=0):
        path = tmp_path / "nvidia-smi"
        path.write_text(f"#!/bin/sh\ncat <<END\n{text}\nEND\nexit {code}\n")
        path.chmod(0o755)

    return write


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", []),
        (WHOLE, [UUID]),
        (
            DIVIDED,
            [
                "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f",
                "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb",
            ],
        ),
        (OLD, ["MIG-GPU-aa/1/0", "GPU-bb"]),
        (f"Unable to determine the device handle: Unknown Error\n{WHOLE}", [UUID]),
    ],
)
def test_a_slice_is_a_device_and_a_divided_gpu_is_none(text, ids, nvidia_smi):
    nvidia_smi(text)
    assert gpus.visible() == ids
    launcher = Local()
    if ids:
        assert launcher.slots == len(ids)
        assert [*launcher._free] == ids


@pytest.mark.parametrize(
    ("value", "ids"),
    [("2,5", ["2", "5"]), (" 2, 5 ", ["2", "5"]), ("", []), ("-1", []), ("0,-1,1", ["0"])],
)
def test_the_variable_says_which_are_visible(value, ids, nvidia_smi):
    nvidia_smi(WHOLE)
    assert gpus.visible({gpus.VISIBLE: value}) == ids


def test_a_driver_that_fails_is_no_machine_without_gpus(nvidia_smi, monkeypatch):
    nvidia_smi("Failed to initialize NVML: Driver/library version mismatch", 18)
    with pytest.raises(UserError, match="version mismatch"):
        Local()
    monkeypatch.setenv(gpus.VISIBLE, "")
    assert Local().slots >= 1
    nvidia_smi("No devices were found", 6)
    monkeypatch.delenv(gpus.VISIBLE)
    assert gpus.visible() == []


def test_a_machine_without_a_driver_has_no_gpus(monkeypatch, tmp_path):
    assert gpus.visible({"PATH": str(tmp_path)}) == []


@pytest.mark.parametrize(
    ("value", "count", "enough"),
    [
        (None, 0, True),
        ("", 0, True),
        ("-1", 0, True),
        ("0", 0, False),
        ("0,9", 1, False),
        ("0,1", 2, True),
        ("MIG-a", 0, False),
        ("MIG-a,MIG-b", 1, True),
        (UUID, 0, False),
    ],
)
def test_gpus_that_are_named_have_to_be_there(value, count, enough):
    environment = {} if value is None else {gpus.VISIBLE: value}
    if enough:
        gpus.require_named(count, environment)
    else:
        with pytest.raises(UserError, match=gpus.VISIBLE):
            gpus.require_named(count, environment)


@pytest.fixture
def gone(monkeypatch):
    """The environment of a job whose GPU has gone since."""
    monkeypatch.setenv(gpus.VISIBLE, "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)


@pytest.mark.parametrize("accelerator", ["auto", "gpu", "cuda"])
def test_a_training_does_not_fall_back_to_the_cpu(accelerator, tiny, refused, gone, tmp_path):
    error = refused("fit", "--config", tiny, "--trainer.accelerator", accelerator)
    assert gpus.VISIBLE in error
    assert not (tmp_path / "runs").exists()


def test_nor_does_an_analysis(digits_run, refused, gone):
    words = ["analyze", "features", "--run", digits_run.folder, "--output", "here"]
    assert gpus.VISIBLE in refused(*words)
    assert device_of("cpu").type == "cpu"


def test_a_gpu_that_is_asked_for_by_the_config_has_to_be_there(tiny, refused, monkeypatch):
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert "gpu" in refused("fit", "--config", tiny, "--trainer.accelerator", "gpu")
