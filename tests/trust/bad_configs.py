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
    "missing": Case("fit --config bad.yaml", ("bad.yaml", "ltbench list configs")),
    "empty": Case(
        "fit --config bad.yaml", ("bad.yaml", "it needs the keys trainer"), {"bad.yaml": ""}
    ),
    "a folder": Case(
        "fit --config bad.yaml", ("bad.yaml", "ltbench list configs"), {"bad.yaml": folder}
    ),
    "a list": config("- trainer\n- model\n", "bad.yaml", "it needs the keys trainer"),
    "a string": config("hello\n", "bad.yaml", "it needs the keys trainer"),
    "cut off": config("trainer: {max_epochs: 3", "max_epochs", "while parsing a flow mapping in"),
    "unknown alias": config("trainer: *nothing\n", "bad.yaml", "is no readable config"),
    "python object": config(
        "trainer: !!python/object/apply:os.system ['touch trace']\n",
        "python/object/apply",
        "could not determine a constructor for",
    ),
    "latin1": config(
        "# Modèle\nname: é\n".encode("latin1"), "bad.yaml", "invalid continuation byte"
    ),
    "a picture": config(
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)), "bad.yaml", "codec can't decode byte"
    ),
    "no model": Case(
        "fit --config bad.yaml", ("--config", "A config has all that is"), {"bad.yaml": DIGITS}
    ),
    "no data": Case(
        "fit --config bad.yaml", ("--config", "A config has all that is"), {"bad.yaml": ERM}
    ),
    "no class": Case(
        "fit --config bad.yaml",
        ("loss", "unknown option"),
        {"bad.yaml": DIGITS + "model: {init_args: {loss: focal_loss}}\n"},
    ),
    "a recursive alias": config(
        "trainer: &a {max_epochs: *a}\n", "bad.yaml", "nested without an end"
    ),
    "aliases of aliases": config(
        "trainer:\n  a: &a0 [x]\n"
        + "".join(f"  a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)),
        "bad.yaml",
        "has over 100000 values",
    ),
    "brackets without an end": config("trainer: " + "[" * 3000, "bad.yaml", "nested too deeply"),
    "a key twice": config(
        "trainer: {max_epochs: 1, max_epochs: 7}\n", "bad.yaml", "'max_epochs' is there twice"
    ),
    "two documents": config(
        "trainer: {}\n---\nmodel: 3\n", "bad.yaml", "expected a single document"
    ),
    "utf-16": config("trainer: {}\n".encode("utf-16"), "bad.yaml", "is no readable config"),
    "a tab": config("trainer:\n\tmax_epochs: 1\n", "bad.yaml", "cannot start any token"),
}
TYPES = {
    "trainer is a number": config("trainer: 3\n", "bad.yaml", "holds no settings but"),
    "trainer is null": config("trainer:\n", "bad.yaml", "holds no settings but None"),
    "model is a number": config("model: 3\n", "bad.yaml", "holds no settings but"),
    "data is a list": config("data: [digits]\n", "bad.yaml", "holds no settings but"),
    "model is null": config("model:\n", "bad.yaml", "holds no settings but None"),
    "arguments are a list": config(
        "model: {init_args: [1]}\n", "init_args", "Problem with given class"
    ),
    "unknown key": config(
        "modle: {class_path: ERM}\n", "class_path", "Did you mean 'model.class_path'?"
    ),
    "unknown argument": config(
        "model: {init_args: {clip: 3}}\n", "clip", "Did you mean 'clip_norm'?"
    ),
    "batch is a word": digits("batch_size many", "batch_size", "Expected a"),
    "batch is null": digits("batch_size null", "data.batch_size", "it needs a value"),
    "batch is 0": digits("batch_size 0", "data.batch_size", "size must be at least"),
    "negative workers": digits("num_workers -1", "data.num_workers", "0 to 256"),
    "too many workers": digits("num_workers 100000", "data.num_workers", "0 to 256"),
    "subset seed": digits("subset_seed -1", "subset seed -1", "it must be 0 to"),
    "share is nan": digits("val_fraction nan", "val_fraction", "Expected a"),
    "share is 1": digits("val_fraction 1", "data.val_fraction", "it must lie in"),
    "imbalance below 1": digits("imbalance_factor 0.5", "0.5", "it is the largest class count"),
    "imbalance empties a class": digits(
        "imbalance_factor 500", "500", "Use an imbalance factor of at"
    ),
    "largest is 0": digits("largest 0", "classes with at most"),
    "largest is too large": digits("largest 5000", "largest", "but the profile asks for"),
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
        "it must be at least",
    ),
    "unknown augmentation argument": config(
        "data: {init_args: {augment: [{class_path: RandomCrop, init_args: {pading: 1}}]}}\n",
        "pading",
        "Did you mean 'padding'?",
    ),
    "a view named image": config(
        "data: {init_args: {views: {image: []}}}\n", "views", "a batch has an entry"
    ),
}
MODEL = {
    "unknown class": fit("--model EMR", "model", "Did you mean 'ERM'?"),
    "a function": fit("--model os.system", "os.system", "importing package 'os' runs its code"),
    "backbone is unknown": fit(
        "--model.backbone resnet32cifar", "resnet32cifar", "Any timm name will do"
    ),
    "backbone argument yaml": config(
        "model: {init_args: {backbone_args: {depht: 1}}}\n",
        "depht",
        "got an unexpected keyword argument",
    ),
    "pretrained": config(
        "model: {init_args: {backbone: resnet32_cifar, backbone_args: {pretrained: true}}}\n",
        "resnet32_cifar",
        "has no pretrained weights",
    ),
    "classes of another data set": fit("--model.num_classes 7", "num_classes", "this data has 10"),
    "channels of another data set": config(
        "model: {init_args: {in_chans: 3}}\n", "model.in_chans is 3", "leave it out"
    ),
    "classes of the backbone": config(
        "model: {init_args: {backbone_args: {num_classes: 3}}}\n", "backbone_args", "num_classes"
    ),
    "a file of the backbone": config(
        "model: {init_args: {backbone_args: {checkpoint_path: evil.pth}}}\n",
        "checkpoint_path",
        "runs code",
    ),
    "backbone argument of another kind": config(
        "model: {init_args: {backbone: resnet18, backbone_args: {block_args: 3}}}\n",
        "resnet18",
        "does not take block_args: 3",
    ),
    "backbone too small": config(
        "model: {init_args: {backbone: deit_tiny_patch16_224}}\n",
        "deit_tiny_patch16_224",
        "cannot take images of",
    ),
    "unknown loss": fit("--model.loss vs", "loss", "Did you mean 'vs_loss'?"),
    "unknown constant": config(
        "model: {init_args: {loss: vs_loss, loss_args: {gama: 1}}}\n",
        "vs_loss",
        "Did you mean 'gamma'?",
    ),
    "constant is a word": config(
        "model: {init_args: {loss: vs_loss, loss_args: {gamma: big}}}\n", "loss_args", "Expected a"
    ),
    "ldam without cosine": fit("--model.loss ldam_loss", "ldam_loss", "takes margins off cosines"),
    "norm": fit("--model.clip_norm -1", "clip_norm"),
    "average": fit("--model.ema_decay 1", "ema_decay", "it must lie in"),
    "mixup": fit("--model.mixup -1", "mixup", "must be at least"),
    "optimizer": fit(
        "--model.optimizer torch.optim.SGX", "torch.optim.SGX", "either not accessible or invalid"
    ),
    "optimizer argument": fit(
        "--model.optimizer torch.optim.SGD --model.optimizer.rate 1", "rate", "unknown option"
    ),
    "learning rate": fit(
        "--model.optimizer torch.optim.SGD --model.optimizer.lr -1",
        "optimizer",
        "Invalid learning rate",
    ),
    "an optimizer that asks for the loss": fit(
        "--model.optimizer torch.optim.LBFGS", "LBFGS", "use torch.optim.SGD"
    ),
    "a scheduler of torch": fit(
        "--model.lr_schedule torch.optim.lr_scheduler.StepLR", "lr_schedule", "StepLR"
    ),
    "warm-up": config(
        "model: {init_args: {lr_schedule: {class_path: Cosine, init_args: {warmup: 1.5}}}}\n",
        "1.5",
        "point in training",
    ),
    "warm-up is nan": config(
        "model: {init_args: {lr_schedule: {class_path: DeiTCosine, init_args: {warmup: .nan}}}}\n",
        "nan",
        "point in training",
    ),
    "a function that is no loss": fit("--model.loss check_counts", "unknown loss", "vs_loss"),
    "learning rate is a word": fit(
        "--model.optimizer torch.optim.SGD --model.optimizer.lr fast", "fast", "unknown class"
    ),
    "radius": fit(
        "--model.gradient_rule SAM --model.gradient_rule.rho -1",
        "rho",
    ),
    "milestones": config(
        "model: {init_args: {lr_schedule: {class_path: MultiStep, init_args: "
        "{milestones: [[0.9, 0.1], [0.8, 0.01]]}}}}\n",
        "milestones",
        "each later than the one before",
    ),
    "reweighting": config(
        "model: {init_args: {reweighting: {start: 2.5, beta: 0.9}}}\n",
        "2.5",
        "point in training",
    ),
    "reweighting beta": config(
        "model: {init_args: {reweighting: {start: 0.5, beta: 1}}}\n",
        "reweighting",
        "it must lie in",
    ),
}
TRAINER = {
    "epochs is a word": fit("--trainer.max_epochs ten", "trainer.max_epochs", "Expected a"),
    "no epochs": fit(
        "--trainer.max_epochs -1", "trainer.max_epochs", "the schedules are fractions of it"
    ),
    "0 epochs": fit(
        "--trainer.max_epochs 0", "trainer.max_epochs", "the schedules are fractions of it"
    ),
    "shortened": fit("--trainer.max_e 3", "--trainer.max_e", "Did you mean '--trainer.max_time'?"),
    "accelerator": fit("--trainer.accelerator gpus", "accelerator", "You selected an invalid"),
    "no gpu": fit("--trainer.accelerator tpu", "Try running"),
    "devices": fit("--trainer.devices 0", "devices", "value is not a valid input"),
    "devices negative": fit("--trainer.devices -3", "devices", "should be an int"),
    "precision": fit("--trainer.precision 17", "trainer.precision", "Expected a typing"),
    "strategy": fit("--trainer.strategy dpp", "strategy", "Find a complete list of options"),
    "no training batches": fit(
        "--trainer.limit_train_batches 0",
        "--trainer.limit_train_batches",
        "leave no checkpoint to test",
    ),
    "validation every 0": fit(
        "--trainer.check_val_every_n_epoch 0", "trainer.check_val_every_n_epoch", "must be at least"
    ),
    "validation every -1": fit(
        "--trainer.check_val_every_n_epoch -1",
        "trainer.check_val_every_n_epoch",
        "must be at least",
    ),
    "validation after 0 steps": fit(
        "--trainer.val_check_interval 0", "trainer.val_check_interval", "must be above 0"
    ),
    "a part of the test images": fit(
        "--trainer.limit_test_batches 0.5", "limit_test_batches", "a whole number of batches"
    ),
    "one batch for all": fit(
        "--trainer.overfit_batches 1", "trainer.overfit_batches", "use limit_train_batches"
    ),
    "a time limit": fit("--trainer.max_time 00:01:00:00", "trainer.max_time", "timeout 2h"),
    "more epochs at least than at most": fit(
        "--trainer.min_epochs 9", "trainer.min_epochs", "max_epochs 4"
    ),
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
        "Automatic gradient clipping is not supported",
    ),
    "no checkpoints": fit(
        "--trainer.enable_checkpointing false",
        "enable_checkpointing",
        "Trainer was configured with",
    ),
    "callback": fit("--trainer.callbacks EarlyStoping", "trainer.callbacks", "unknown class"),
    "callback argument": fit(
        "--trainer.callbacks EarlyStopping", "trainer.callbacks", "A config has all that is"
    ),
    "seed is negative": fit(
        "--seed_everything -1", "seed_everything", "a run needs a whole number"
    ),
    "seed is a word": fit("--seed_everything abc", "seed_everything", "Expected a"),
    "seed is true": fit("--seed_everything true", "seed_everything", "a run needs a whole number"),
    "stray word": fit("stray", "stray", "unrecognized arguments"),
}
PLACES = {
    "runs is a file": fit(
        "--trainer.default_root_dir tiny.yaml", "tiny.yaml", "json cannot be written"
    ),
    "runs where nothing can be": fit(
        "--trainer.default_root_dir /proc/runs", "/proc/runs", "No such file or directory"
    ),
    "name is too long": fit("--name " + "x" * 300, "--name", "is no name of a run"),
    "name has a slash": fit("--name a/b", "--name", "is no name of a run"),
    "no folder for runs": fit(
        "--trainer.default_root_dir null", "default_root_dir", "such as runs"
    ),
    "a bucket for runs": fit(
        "--trainer.default_root_dir s3://bucket/runs",
        "default_root_dir",
        "a folder of this machine",
    ),
    "a file that fit does not write": fit("--output x.csv", "--output", "fit writes no file"),
    "a file that test does not write": Case(
        "test --config tiny.yaml --ckpt_path {last} --output x.csv", ("--output", "test writes no")
    ),
    "a package that is no list": fit(
        "--model os.system", "importing package 'os'", environment={"LTBENCH_TRUST": "*"}
    ),
    "a trusted package without such a class": fit(
        "--model json.JSONDecoder",
        "JSONDecoder",
        "subclass of Method",
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
