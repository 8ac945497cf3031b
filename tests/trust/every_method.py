"""A run of every method that takes a second or two: what the tests of trust put each through."""

from pathlib import Path

import yaml
from support import TINY, run_command

TRAINER = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
CROP = {"class_path": "RandomCrop", "init_args": {"padding": 1}}
SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "momentum": 0.9}}
STUDENT = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
DISTILBERT = {
    "vocab_size": 128,
    "dim": 16,
    "n_layers": 1,
    "n_heads": 2,
    "hidden_dim": 16,
    "max_position_embeddings": 12,
}
PROTOCOL = {"n1": 40, "rho_l": 20, "m1": 60, "rho_u": 20, "val_per_class": 20}

LONG_TAIL = {
    "source": "digits",
    "imbalance_factor": 10,
    "largest": 60,
    "val_fraction": 0.2,
    "batch_size": 32,
    "augment": [CROP],
}
SEMI = {
    "source": "digits",
    "protocol": {"class_path": "ReleasedProtocol", "init_args": PROTOCOL},
    "batch_size": 8,
    "mu": 2,
    "steps_per_epoch": 6,
    "augment": [CROP],
}
STRONG = [
    {
        "class_path": "RandAugment",
        "init_args": {"num_ops": 3, "magnitude": None, "space": "fixmatch", "cutout": 0.5},
    }
]

# Method -> its class, its arguments, and the data: as much of its state as a config can switch on.
METHODS = {
    "erm": (
        "ERM",
        {
            "backbone_args": {"drop_rate": 0.3},
            "gradient_rule": "SAM",
            "reweighting": {"start": 0.5},
            "mixup": 0.4,
            "ema_decay": 0.9,
        },
        LONG_TAIL,
    ),
    "paco": (
        "PaCo",
        {"queue": 50, "dim": 8, "gradient_rule": "SAM"},
        LONG_TAIL | {"views": {"key": [CROP]}},
    ),
    "deit_lt": (
        "DeiTLT",
        {
            "backbone": "deit_tiny_distilled_patch4_32",
            "backbone_args": STUDENT | {"drop_path_rate": 0.1},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 3.0e-3}},
            "teacher": {"path": "START"},
            "reweighting": {"start": 0.75},
            "ema_decay": 0.9,
            "micro_batch": 8,
        },
        LONG_TAIL,
    ),
    "fixmatch": (
        "FixMatch",
        {"p_cutoff": 0.3, "ema_decay": 0.9},
        SEMI | {"strong_augment": STRONG, "oracle": True},
    ),
    "csst": (
        "CSST",
        {
            "objective": "hmean_recall_coverage",
            "update_interval": 2,
            "kl_tau": 2.0,
            "ema_decay": 0.9,
        },
        SEMI | {"strong_augment": STRONG},
    ),
    "csst_text": (
        "CSST",
        {
            "backbone": "distilbert",
            "backbone_args": DISTILBERT,
            "objective": "min_recall",
            "temperature": 0.4,
            "update_interval": 2,
            "kl_tau": 2.0,
            "ema_decay": 0.9,
        },
        SEMI | {"source": "phrases", "max_length": 12, "augment": []},
    ),
    "selmix": (
        "SelMix",
        {"init_from": {"path": "START"}, "partners": "unlabelled", "cycle": 6},
        SEMI | {"mu": 0, "batch_size": 32},
    ),
    "lws": (
        "LWS",
        {"init_from": {"path": "START"}, "ema_decay": 0.9},
        SEMI | {"mu": 0, "batch_size": 32},
    ),
    "taunorm": (
        "TauNormalisation",
        {"init_from": {"path": "START"}},
        SEMI | {"mu": 0, "batch_size": 32},
    ),
    "ncm": (
        "ClassMeans",
        {"init_from": {"path": "START"}, "metric": "euclidean"},
        SEMI | {"mu": 0, "batch_size": 32},
    ),
    "posthocla": (
        "LogitAdjustment",
        {"init_from": {"path": "START"}},
        SEMI | {"mu": 0, "batch_size": 32},
    ),
    "crt": (  # on features
        "ERM",
        {"init_from": {"path": "START"}, "head_init": "random", "trainable": "head"},
        SEMI | {"mu": 0, "batch_size": 32, "augment": [], "sampler": "class_balanced"},
    ),
    "mislas": (
        "MiSLAS",
        {"init_from": {"path": "START"}, "shift_bn": True},
        SEMI | {"mu": 0, "batch_size": 32, "augment": [], "sampler": "class_aware"},
    ),
    "ride": ("RIDE", {"backbone": "three_experts", "gradient_rule": "SAM"}, LONG_TAIL),
    "cbgan": (
        "CBGAN",
        {
            "architecture": {"image_size": 8, "width": 4, "latent": 8},
            "classifier": {"path": "START"},
            "annotator": {"path": "ANNOTATOR"},
            "fid_features": {"path": "ANNOTATOR"},
            "balance": {"update_every": 4, "pending": 0},
            "ema_decay": 0.8,
            "ema_start": 6,
            "samples": 90,
            "watch_samples": 40,
        },
        LONG_TAIL | {"watch_test": True, "val_fraction": 0.0, "augment": []},
    ),
}


def config(method, home, epochs=8, **data):
    """Return the config of a method whose starts lie in ``home``."""
    name, arguments, settings = METHODS[method]
    net = {"backbone": "tiny_net", "optimizer": SGD}
    if method == "cbgan":
        net = {}
    elif method == "selmix":
        net = {"optimizer": SGD}
    elif method in ("taunorm", "ncm", "posthocla"):
        net = {"backbone": "tiny_net"}
    data_class = "LongTailDataModule"
    if "protocol" in settings:
        text = settings["source"] == "phrases"
        data_class = "TextDataModule" if text else "SemiSupervisedDataModule"
    whole = {
        "seed_everything": 3,
        "trainer": TRAINER | {"max_epochs": epochs},
        "model": {"class_path": name, "init_args": net | arguments},
        "data": {
            "class_path": data_class,
            "init_args": settings | data,
        },
    }
    text = yaml.safe_dump(whole)
    for role in ("START", "ANNOTATOR"):
        if role in text:
            (folder,) = Path(home, "runs").glob(f"{role.lower()}-*")
            text = text.replace(f"path: {role}", f"path: {folder}")
    return text


def train_starts(home):
    """Train in ``home`` what some methods begin with: a run on labelled images, one on all."""
    whole = yaml.safe_load(TINY)
    start = SEMI | {"mu": 0, "batch_size": 32}
    for name, data in (
        ("start", {"class_path": "SemiSupervisedDataModule", "init_args": start}),
        ("annotator", {"class_path": "LongTailDataModule", "init_args": {"profile": "natural"}}),
    ):
        file = home / f"{name}.yaml"
        file.write_text(yaml.safe_dump(whole | {"data": data}))
        done = run_command("fit", "--config", file, cwd=home)
        assert done.code == 0, done.err
