"""Every speed script runs at a smoke size, with no time asserted; what is faster does the same."""

import importlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.nn import functional as F

ROOT = Path(__file__).parents[1]
SPEED = ROOT / "benchmarks" / "speed"
FILES = "--number 6 --made 160 120 --size 32"
TINY_VIT = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}

# Script -> a smoke size, and what must be in the titles of its answer.
QUICK = {
    "heads": ("--epochs 1 --largest 100", ["1 epochs", "bare"]),
    "sam": ("--steps 1 --batch-size 8", ["SAM step"]),
    "augment": ("--batches 1 --batch-size 4", ["batched / v2", "batched / PIL"]),
    "evaluation": ("--classes 10 --batch-size 2", ["collector / of the pass", "state"]),
    "decode": (FILES, ["crop / torchvision crop", "centre / torchvision"]),
    "objectives": ("--classes 10 20", ["10 classes", "20 classes"]),
}
SLOW = {
    "hessian": ("--batch-size 2 --steps 2 --images 4", ["five runs", "Lanczos"]),
    "training": (
        "--configs ce_cifar10 deitlt_tiny_cifar10 --steps 2 --batch-size 8",
        ["ce_cifar10: images/s through the project / of its bare step", "plain loop", "deitlt"],
    ),
    "csst": ("--batch-size 2 --held-out 20 --steps 1", ["CSST step"]),
    "selmix": ("--batch-size 2 --held-out 20 --steps 1", ["SelMix step", "look"]),
    "selmix_gain": ("--classes 3 10", ["10 classes", "memory"]),
    "cbgan": ("--batch-size 2", ["with the regulariser / without it", "bare step"]),
    "loaders": (f"{FILES} --batch-size 3 --workers 0 1", ["0 workers", "1 workers"]),
    "startup": ("", ["ltbench --help", "of import torch", "first step"]),
    "graphs": ("--steps 1 --batch-size 2", ["bf16-mixed, graph / 32-true, eager", "peak memory"]),
    "switches": ("--steps 1 --batch-size 2", ["bf16, channels-last, compiled"]),
    "jobs": ("--steps 1 --batch-size 2", ["a job a core / one job", "large pages"]),
    "bench": ("--rows 2 --seeds 2 --images 100 --jobs 1", ["a job by the runner", "status"]),
    "deit_lt": ("--config small.yaml --steps 1 --batch-size 4", ["student step and teacher"]),
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:the (classifier|annotator) has"),
]


@pytest.fixture
def load(monkeypatch):
    """Import a speed script."""
    monkeypatch.syspath_prepend(SPEED)
    # For the processes that a script starts.
    monkeypatch.setenv("PYTHONPATH", str(SPEED), prepend=os.pathsep)
    yield importlib.import_module
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_a_script_runs_and_answers_its_question(name, load, tmp_path, monkeypatch, capsys):
    config = yaml.safe_load((ROOT / "configs" / "deitlt_tiny_cifar10.yaml").read_text())
    config["model"]["init_args"]["backbone_args"] = TINY_VIT
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    words, titles = {**QUICK, **SLOW}[name]
    script = load(name)
    script.main([*words.split(), "--threads", "1", "--repeats", "1", "--output", "found.json"])
    result = json.loads(Path("found.json").read_text())
    assert result["question"] in " ".join(script.__doc__.split())
    assert result["question"].endswith("?")
    told = [row["title"] for row in result["answer"]]
    assert all(any(wanted in title for title in told) for wanted in titles), told
    assert all(isinstance(row["met"], bool) for row in result["answer"] if "goal" in row)
    assert result["speeds"]
    assert all(row["wall"] > 0 for row in result["speeds"])
    assert result["machine"].keys() >= {"cpu", "cores", "threads", "load"}
    assert result["versions"].keys() >= {"torch", "lightning", "ltbench"}
    assert all(len(repeats) == 1 for repeats in result["repeats"].values())
    assert {path.name for path in tmp_path.iterdir()} == {"small.yaml", "found.json"}
    assert "goal" in capsys.readouterr().out


def test_ratios_are_taken_within_a_repeat(load):
    rounds = load("timing").Rounds()
    rounds.repeats = [  # the machine slows down and recovers; one does two units of work
        {"one": np.array([2, 2 * wall, 1]), "other": np.array([1, 2 * wall, 3])}
        for wall in (1.0, 10.0, 4.0)
    ]
    row = rounds.row("", lambda seconds: seconds["other"] / seconds["one"], "<= 2")
    assert row.values == {"wall": 2.0, "processor": 6.0}
    assert row.met is True
    assert rounds.row("", lambda seconds: seconds["one"], "< 4").met is False
    assert rounds.row("", lambda seconds: seconds["one"]).met is None


def test_turns_alternate_after_a_warm_up(load):
    calls = []
    candidates = {name: lambda name=name: calls.append(name) for name in "ab"}
    rounds = load("timing").take_turns(candidates, repeats=2, calls={"b": 2})
    assert "".join(calls) == "abb" + "bba" + "abb"
    assert [int(repeat["b"][0]) for repeat in rounds.repeats] == [2, 2]


def test_the_page_is_what_the_files_say(load, tmp_path):
    tables = load("tables")
    assert tables.page() == (SPEED / "README.md").read_text(), "run benchmarks/speed/tables.py"
    assert "| `sam.py` | What does a SAM step cost over a plain step? |" in tables.page()
    assert "0 of 0 goals" in tables.page(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_check_without_a_gpu_fails(load):
    with pytest.raises(SystemExit, match="no GPU"):
        load("gpu_check").main([])


def test_the_parts_of_a_gpu_check_take_less_than_ten_minutes(load):
    assert sum(part.limit for part in load("gpu_check").PARTS) < 600


def test_a_part_that_fails_costs_that_part_alone(load, tmp_path, monkeypatch, capfd):
    check, tables = load("gpu_check"), load("tables")
    ends = {
        "good": f"import shutil; shutil.copy({str(SPEED / 'sam.json')!r}, 'good.json')",
        "bad": "raise SystemExit(3)",
        "empty": "pass",
        "slow": "import subprocess; subprocess.run(['sleep', '600'])",
    }
    for name, code in ends.items():
        (tmp_path / f"{name}.py").write_text(code)
    parts = [
        check.Part(n, str(tmp_path / f"{n}.py"), "", "", 2 if n == "slow" else 60) for n in ends
    ]
    monkeypatch.setattr(check, "PARTS", parts)
    monkeypatch.setattr(check, "HERE", tmp_path)
    monkeypatch.setattr(tables, "ON_GPU", tmp_path / "on_gpu")
    monkeypatch.setattr(tables, "HERE", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(SystemExit) as stop:
        check.main([])
    assert stop.value.code == 1
    told = capfd.readouterr().out.splitlines()[-4:]
    assert [line.partition(":")[0] for line in told] == [*ends]
    assert [line.endswith(": done") for line in told] == [True, False, False, False]
    page = (tmp_path / "README.md").read_text()
    assert "## On a GPU" in page
    assert "### good" in page
    assert "Nothing here was measured on a GPU" not in page


@pytest.mark.slow
def test_a_gpu_check_is_rehearsed_whole(load, capfd):
    before = (SPEED / "README.md").read_text(), sorted(SPEED.rglob("*.json"))
    load("gpu_check").main(["--rehearse"])
    told = capfd.readouterr().out.splitlines()[-len(load("gpu_check").PARTS) :]
    assert all(line.endswith(": done") for line in told), told
    assert before == ((SPEED / "README.md").read_text(), sorted(SPEED.rglob("*.json")))


@pytest.fixture(scope="module")
def picture() -> Tensor:
    """A photograph of 32 x 32 pixels, (3, 32, 32) uint8, without black."""
    image = Image.fromarray(load_sample_image("flower.jpg")).resize((32, 32))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).clamp_min(1)


@pytest.mark.parametrize("way", ["batched", "v2", "PIL"])
def test_each_way_crops_and_flips_to_one_of_the_same_images(way, load, picture):
    augment = load("augment")
    normalise = augment.batched([], torch.device("cpu"))
    padded = F.pad(picture, (4, 4, 4, 4))
    windows = [padded[:, top : top + 32, left : left + 32] for top in range(9) for left in range(9)]
    possible = normalise(torch.stack([w for one in windows for w in (one, one.flip(-1))]))
    found = augment.pipelines()["crop, flip"][way](picture.expand(100, -1, -1, -1))
    distance = torch.cdist(found.flatten(1), possible.flatten(1), p=torch.inf)
    assert distance.amin(1).max() < 1e-5
    assert len(distance.argmin(1).unique()) > 50


@pytest.mark.parametrize("title", ["crop, flip", "crop, flip, cutout", "crop, flip, RandAugment"])
def test_batched_augmentation_has_the_moments_of_torchvisions(title, load, picture):
    torch.manual_seed(0)
    ways = load("augment").pipelines()[title]
    seen = {way: moments(augment(picture.expand(600, -1, -1, -1))) for way, augment in ways.items()}
    ours = seen.pop("batched")
    for theirs in seen.values():
        error = ((ours.var(0) + theirs.var(0)) / len(ours)).sqrt()
        assert ((ours.mean(0) - theirs.mean(0)).abs() < 5 * error + 1e-3).all()
        ratio = (ours.std(0) + 1e-3) / (theirs.std(0) + 1e-3)
        assert 0.7 < ratio.min() <= ratio.max() < 1.4


def moments(images: Tensor) -> Tensor:
    """Mean and spread of each channel and the mean of each of 16 places, by image: (n, 22)."""
    places = F.adaptive_avg_pool2d(images, 4).mean(1).flatten(1)
    return torch.cat([images.mean((2, 3)), images.std((2, 3)), places], 1)
