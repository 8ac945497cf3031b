"""Bad configs and arguments of ``fit``."""

from bad_case import Case, folder

ERM = "model: {class_path: ERM}\n"
DIGITS = "data: {class_path: LongTailDataModule}\n"


def config(text, *says):
    return Case("{fit} --config bad.yaml", says, {"bad.yaml": text})


def fit(words, *says, **more):
    return Case(f"{{fit}} {words}", says, **more)


def digits(words, *says):
    return Case(f"{{fit}} --data.{words}", says)


FILES = {
    "missing": Case("fit --config bad.yaml", ("bad.yaml",)),
    "empty": Case("fit --config bad.yaml", ("bad.yaml",), {"bad.yaml": ""}),
    "a folder": Case("fit --config bad.yaml", ("bad.yaml",), {"bad.yaml": folder}),
    "a list": config("- trainer\n- model\n", "bad.yaml"),
    "a string": config("hello\n", "bad.yaml"),
    "cut off": config("trainer: {max_epochs: 3", "max_epochs"),
    "unknown alias": config("trainer: *nothing\n", "bad.yaml"),
    "python object": config(
        "trainer: !!python/object/apply:os.system ['touch trace']\n",
        "python/object/apply",
    ),
    "latin1": config("# Modèle\nname: é\n".encode("latin1"), "bad.yaml"),
    "a picture": config(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)), "bad.yaml"),
    "no model": Case("fit --config bad.yaml", ("--config",), {"bad.yaml": DIGITS}),
    "no data": Case("fit --config bad.yaml", ("--config",), {"bad.yaml": ERM}),
    "no class": Case(
        "fit --config bad.yaml",
        ("loss",),
        {"bad.yaml": DIGITS + "model: {init_args: {loss: focal_loss}}\n"},
    ),
    "a recursive alias": config("trainer: &a {max_epochs: *a}\n", "bad.yaml"),
    "aliases of aliases": config(
        "trainer:\n  a: &a0 [x]\n"
        + "".join(f"  a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)),
        "bad.yaml",
    ),
    "brackets without an end": config("trainer: " + "[" * 3000, "bad.yaml"),
    "a key twice": config("trainer: {max_epochs: 1, max_epochs: 7}\n", "bad.yaml"),
    "two documents": config("trainer: {}\n---\nmodel: 3\n", "bad.yaml"),
    "utf-16": config("trainer: {}\n".encode("utf-16"), "bad.yaml"),
    "a tab": config("trainer:\n\tmax_epochs: 1\n", "bad.yaml"),
}
TYPES = {
    "trainer is a number": config("trainer: 3\n", "bad.yaml"),
    "trainer is null": config("trainer:\n", "bad.yaml"),
    "model is a number": config("model: 3\n", "bad.yaml"),
    "data is a list": config("data: [digits]\n", "bad.yaml"),
    "model is null": config("model:\n", "bad.yaml"),
    "arguments are a list": config("model: {init_args: [1]}\n", "init_args"),
    "unknown key": config(
        "modle: {class_path: ERM}\n", "class_path", "Did you mean 'model.class_path'?"
    ),
    "unknown argument": config(
        "model: {init_args: {clip: 3}}\n", "clip", "Did you mean 'clip_norm'?"
    ),
    "batch is a word": digits("batch_size many", "batch_size"),
    "batch is null": digits("batch_size null", "data.batch_size"),
    "batch is 0": digits("batch_size 0", "data.batch_size"),
    "negative workers": digits("num_workers -1", "data.num_workers"),
    "too many workers": digits("num_workers 100000", "data.num_workers"),
    "subset seed": digits("subset_seed -1", "subset seed -1"),
    "share is nan": digits("val_fraction nan", "val_fraction"),
    "share is 1": digits("val_fraction 1", "data.val_fraction"),
    "imbalance below 1": digits("imbalance_factor 0.5", "0.5"),
    "imbalance empties a class": digits("imbalance_factor 500", "500"),
    "largest is 0": digits("largest 0", "classes with at most"),
    "largest is too large": digits("largest 5000", "largest"),
    "image size 0": digits("image_size 0", "must be at least"),
    "unknown source": digits("source cifar-10", "cifar-10", "Did you mean 'cifar10'?"),
    "unknown profile": digits("profile expo", "profile", "Did you mean 'exp'?"),
    "unknown sampler": digits("sampler balanced", "balanced", "Did you mean 'class_balanced'?"),
    "decoding of arrays": digits("decoding.resize 12", "and use RandomResizedCrop in data"),
    "augmentation of words": config(
        "data: {init_args: {augment: [RandomCorp]}}\n", "RandomCorp", "Did you mean 'RandomCrop'?"
    ),
    "unknown augmentation": config(
        "data: {init_args: {augment: [{class_path: RandomCorp}]}}\n",
        "RandomCorp",
        "Did you mean 'RandomCrop'?",
    ),
    "padding is negative": config(
        "data: {init_args: {augment: [{class_path: RandomCrop, init_args: {padding: -1}}]}}\n",
        "RandomCrop",
    ),
    "unknown augmentation argument": config(
        "data: {init_args: {augment: [{class_path: RandomCrop, init_args: {pading: 1}}]}}\n",
        "pading",
        "Did you mean 'padding'?",
    ),
    "a view named image": config("data: {init_args: {views: {image: []}}}\n", "views"),
}
MODEL = {
    "unknown class": fit("--model EMR", "model", "Did you mean 'ERM'?"),
    "a function": fit("--model os.system", "os.system"),
    "backbone is unknown": fit("--model.backbone resnet32cifar", "resnet32cifar"),
    "backbone argument yaml": config(
        "model: {init_args: {backbone_args: {depht: 1}}}\n",
        "depht",
    ),
    "pretrained": config(
        "model: {init_args: {backbone: resnet32_cifar, backbone_args: {pretrained: true}}}\n",
        "resnet32_cifar",
    ),
    "classes of another data set": fit("--model.num_classes 7", "num_classes"),
    "channels of another data set": config(
        "model: {init_args: {in_chans: 3}}\n", "model.in_chans is 3"
    ),
    "classes of the backbone": config(
        "model: {init_args: {backbone_args: {num_classes: 3}}}\n", "backbone_args", "num_classes"
    ),
    "a file of the backbone": config(
        "model: {init_args: {backbone_args: {checkpoint_path: evil.pth}}}\n",
        "checkpoint_path",
    ),
    "backbone argument of another kind": config(
        "model: {init_args: {backbone: resnet18, backbone_args: {block_args: 3}}}\n",
        "resnet18",
    ),
    "backbone too small": config(
        "model: {init_args: {backbone: deit_tiny_patch16_224}}\n",
        "deit_tiny_patch16_224",
    ),
    "unknown loss": fit("--model.loss vs", "loss", "Did you mean 'vs_loss'?"),
    "unknown constant": config(
        "model: {init_args: {loss: vs_loss, loss_args: {gama: 1}}}\n",
        "vs_loss",
        "Did you mean 'gamma'?",
    ),
    "constant is a word": config(
        "model: {init_args: {loss: vs_loss, loss_args: {gamma: big}}}\n", "loss_args"
    ),
    "ldam without cosine": fit("--model.loss ldam_loss", "ldam_loss"),
    "norm": fit("--model.clip_norm -1", "clip_norm"),
    "average": fit("--model.ema_decay 1", "ema_decay"),
    "mixup": fit("--model.mixup -1", "mixup"),
    "optimizer": fit("--model.optimizer torch.optim.SGX", "torch.optim.SGX"),
    "optimizer argument": fit("--model.optimizer torch.optim.SGD --model.optimizer.rate 1", "rate"),
    "learning rate": fit(
        "--model.optimizer torch.optim.SGD --model.optimizer.lr -1",
        "optimizer",
    ),
    "an optimizer that asks for the loss": fit("--model.optimizer torch.optim.LBFGS", "LBFGS"),
    "a scheduler of torch": fit(
        "--model.lr_schedule torch.optim.lr_scheduler.StepLR", "lr_schedule", "StepLR"
    ),
    "warm-up": config(
        "model: {init_args: {lr_schedule: {class_path: Cosine, init_args: {warmup: 1.5}}}}\n",
        "1.5",
    ),
    "warm-up is nan": config(
        "model: {init_args: {lr_schedule: {class_path: DeiTCosine, init_args: {warmup: .nan}}}}\n",
        "nan",
    ),
    "a function that is no loss": fit("--model.loss check_counts", "vs_loss"),
    "learning rate is a word": fit(
        "--model.optimizer torch.optim.SGD --model.optimizer.lr fast", "fast"
    ),
    "radius": fit(
        "--model.gradient_rule SAM --model.gradient_rule.rho -1",
        "rho",
    ),
    "milestones": config(
        "model: {init_args: {lr_schedule: {class_path: MultiStep, init_args: "
        "{milestones: [[0.9, 0.1], [0.8, 0.01]]}}}}\n",
        "milestones",
    ),
    "reweighting": config(
        "model: {init_args: {reweighting: {start: 2.5, beta: 0.9}}}\n",
        "2.5",
    ),
    "reweighting beta": config(
        "model: {init_args: {reweighting: {start: 0.5, beta: 1}}}\n",
        "reweighting",
    ),
}
TRAINER = {
    "epochs is a word": fit("--trainer.max_epochs ten", "trainer.max_epochs"),
    "no epochs": fit("--trainer.max_epochs -1", "trainer.max_epochs"),
    "0 epochs": fit("--trainer.max_epochs 0", "trainer.max_epochs"),
    "shortened": fit("--trainer.max_e 3", "--trainer.max_e", "Did you mean '--trainer.max_time'?"),
    "accelerator": fit("--trainer.accelerator gpus", "accelerator"),
    "no gpu": fit("--trainer.accelerator tpu", "Try running"),
    "devices": fit("--trainer.devices 0", "devices"),
    "devices negative": fit("--trainer.devices -3", "devices"),
    "precision": fit("--trainer.precision 17", "trainer.precision"),
    "strategy": fit("--trainer.strategy dpp", "strategy"),
    "no training batches": fit(
        "--trainer.limit_train_batches 0",
        "--trainer.limit_train_batches",
    ),
    "validation every 0": fit(
        "--trainer.check_val_every_n_epoch 0", "trainer.check_val_every_n_epoch"
    ),
    "validation every -1": fit(
        "--trainer.check_val_every_n_epoch -1",
        "trainer.check_val_every_n_epoch",
    ),
    "validation after 0 steps": fit("--trainer.val_check_interval 0", "trainer.val_check_interval"),
    "a part of the test images": fit("--trainer.limit_test_batches 0.5", "limit_test_batches"),
    "one batch for all": fit("--trainer.overfit_batches 1", "trainer.overfit_batches"),
    "a time limit": fit("--trainer.max_time 00:01:00:00", "trainer.max_time"),
    "more epochs at least than at most": fit("--trainer.min_epochs 9", "trainer.min_epochs"),
    "doubles": fit("--trainer.precision 64-true", "64-true", "bf16-mixed"),
    "half of all": fit("--trainer.precision bf16-true", "bf16-true", "bf16-mixed"),
    "weights averaged by a callback": fit(
        "--trainer.callbacks+=StochasticWeightAveraging --trainer.callbacks.swa_lrs 0.1",
        "StochasticWeightAveraging",
        "model.ema_decay",
    ),
    "accumulation": fit("--trainer.accumulate_grad_batches 2", "accumulate_grad_batches"),
    "bare bones": fit("--trainer.barebones true", "barebones"),
    "profiler": fit("--trainer.profiler what", "profiler", "simple"),
    "tasks of Slurm": fit(
        "--trainer.max_epochs 1",
        "--ntasks=2",
        "--ntasks-per-node=2",
        environment={"SLURM_NTASKS": "2", "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "x"},
    ),
    "validation too rare": fit("--trainer.val_check_interval 1000", "val_check_interval", "(1000)"),
    "clipping": fit(
        "--trainer.gradient_clip_val 1",
        "gradient_clip_val",
    ),
    "no checkpoints": fit(
        "--trainer.enable_checkpointing false",
        "enable_checkpointing",
    ),
    "callback": fit("--trainer.callbacks EarlyStoping", "trainer.callbacks"),
    "callback argument": fit("--trainer.callbacks EarlyStopping", "trainer.callbacks"),
    "seed is negative": fit("--seed_everything -1", "seed_everything"),
    "seed is a word": fit("--seed_everything abc", "seed_everything"),
    "seed is true": fit("--seed_everything true", "seed_everything"),
    "stray word": fit("stray", "stray"),
}
PLACES = {
    "runs is a file": fit("--trainer.default_root_dir tiny.yaml", "tiny.yaml"),
    "runs where nothing can be": fit("--trainer.default_root_dir /proc/runs", "/proc/runs"),
    "name is too long": fit("--name " + "x" * 300, "--name"),
    "name has a slash": fit("--name a/b", "--name"),
    "no folder for runs": fit("--trainer.default_root_dir null", "default_root_dir"),
    "a bucket for runs": fit(
        "--trainer.default_root_dir s3://bucket/runs",
        "default_root_dir",
    ),
    "a file that fit does not write": fit("--output x.csv", "--output"),
    "a file that test does not write": Case(
        "test --config tiny.yaml --ckpt_path {last} --output x.csv", ("--output",)
    ),
    "a package that is no list": fit(
        "--model os.system", "LTBENCH_TRUST", "'*'", environment={"LTBENCH_TRUST": "*"}
    ),
    "a trusted package without such a class": fit(
        "--model json.JSONDecoder",
        "JSONDecoder",
        environment={"LTBENCH_TRUST": "json"},
    ),
}
CASES = {
    **{f"config file: {k}": v for k, v in FILES.items()},
    **{f"config: {k}": v for k, v in TYPES.items()},
    **{f"model: {k}": v for k, v in MODEL.items()},
    **{f"trainer: {k}": v for k, v in TRAINER.items()},
    **{f"place: {k}": v for k, v in PLACES.items()},
}
