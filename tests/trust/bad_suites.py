"""Bad suites, plans, claims, records of a leaderboard, and names of things."""

import io
import zipfile

import numpy as np
from bad_case import Case, changed, cut, folder

RECORD, STORED = "run/record.json", "run/predictions_last.npz"
RECALLS = "metrics__last__test__per_class_recall"


def vast(path):
    """Write arrays whose headers claim eight terabytes each."""
    header = io.BytesIO()
    claim = {"descr": "<i8", "fortran_order": False, "shape": (10**12,)}
    np.lib.format.write_array_header_1_0(header, claim)
    with zipfile.ZipFile(path, "w") as file:
        for name in ("index", "label", "prediction", "confidence"):
            file.writestr(f"{name}.npy", header.getvalue())


BOARDS = {
    "never run": Case("leaderboard suite", ("suite", "runs/bench")),
    "a folder without runs": Case("leaderboard images", ("images", "record.json")),
    "a damaged plan": Case(
        "leaderboard suite",
        ("runs/bench/suite.json", "ltbench bench run suite"),
        {"runs/bench/suite.json": "{"},
    ),
    "a plan of a list": Case(
        "leaderboard suite",
        ("runs/bench/suite.json", "ltbench bench run suite"),
        {"runs/bench/suite.json": "[]"},
    ),
    "metric": Case(
        "leaderboard run --by acuracy",
        ("acuracy", "Did you mean 'accuracy'?"),
        {"run/val_predictions_last.npz": None},
    ),
    "format": Case("leaderboard run --format pdf", ("--format", "ltbench leaderboard")),
    "ending": Case("leaderboard run --output table.pdf", ("--output", "table.pdf")),
    "output is a folder": Case(
        "leaderboard run --format html --output images", ("images", "name a file")
    ),
    "output below a file": Case(
        "leaderboard run --output tiny.yaml/table.html",
        ("tiny.yaml/table.html",),
    ),
    "no claims": Case("leaderboard run --claims nowhere.yaml", ("--claims", "nowhere.yaml")),
    "broken claims": Case(
        "leaderboard run --claims claims.yaml",
        ("claims.yaml",),
        {"claims.yaml": "- {a: [1"},
    ),
    "empty claims": Case(
        "leaderboard run --claims claims.yaml",
        ("claims.yaml",),
        {"claims.yaml": ""},
    ),
    "claims of a mapping": Case(
        "leaderboard run --claims claims.yaml",
        ("claims.yaml",),
        {"claims.yaml": "paper: x\n"},
    ),
    "claims of words": Case(
        "leaderboard run --claims claims.yaml",
        ("claims.yaml",),
        {"claims.yaml": "- paper\n"},
    ),
    "a claim without a value": Case(
        "leaderboard run --claims claims.yaml",
        ("claims.yaml",),
        {"claims.yaml": "- {rows: {ce: {accuracy: high}}}\n"},
    ),
    "claims that are no text": Case(
        "leaderboard run --claims claims.yaml",
        ("claims.yaml",),
        {"claims.yaml": b"\xff\xfe"},
    ),
    "claims are a folder": Case("leaderboard run --claims images", ("--claims", "images")),
    "nothing but damaged records": Case(
        "leaderboard run",
        ("run/record.json",),
        {"run/record.json": cut},
    ),
    "a record without metrics": Case(
        "leaderboard run",
        ("run/record.json",),
        {"run/record.json": changed(metrics=None)},
    ),
    "a newer record": Case(
        "leaderboard run --format json",
        ("run/record.json",),
        {"run/record.json": changed(schema=9)},
    ),
    "a schema in words": Case(
        "leaderboard run",
        ("run/record.json",),
        {"run/record.json": changed(schema="new")},
    ),
    **{
        f"a record: {name}": Case("leaderboard run", ("run/record.json", says), {RECORD: damage})
        for name, says, damage in (
            ("metrics in words", "metrics.last.test", changed(metrics__last__test__accuracy="a")),
            ("recalls in words", "per_class_recall", changed(**{RECALLS: [1, "a"]})),
            ("metrics of a number", "metrics.last", changed(metrics__last=3)),
            ("counts in words", "data.class_counts", changed(data__class_counts="many")),
            ("counts below 0", "data.class_counts[0]", changed(data__class_counts=[-1] * 10)),
            ("counts of other classes", "run/record.json", changed(data__class_counts=[1, 2])),
            ("classes of a number", "data.class_names", changed(data__class_names=3)),
            ("a name that a terminal obeys", "'name'", changed(name="\x1b[2J")),
            ("stages of a number", "lineage", changed(lineage=3)),
            ("stages of numbers", "lineage[0]", changed(lineage=[3])),
            ("nested without an end", "run/record.json", "[" * 100_000),
            ("a folder", "run/record.json", folder),
        )
    },
    "a record that is no text": Case(
        "leaderboard run",
        ("run/record.json",),
        {"run/record.json": b"\xff\xfe\x00"},
    ),
}
BENCH = "bench run suite.yaml"


def suite(text, *says, words=""):
    return Case(f"{BENCH} {words}", says, {"suite.yaml": text})


ROW = "rows: {ce: {config: tiny.yaml}}"
SUITES = {
    "no suite": Case("bench run", ("run", "the following arguments are required")),
    "missing": Case("bench run nowhere.yaml", ("nowhere.yaml", "there is no suite")),
    "unknown": Case("bench run cifar10_tl", ("cifar10_tl", "Did you mean 'cifar10_lt'?")),
    "an action": Case("bench runn smoke", ("runn", "Did you mean 'run'?")),
    "broken": suite("rows: {a: [1", "suite.yaml"),
    "empty": suite("", "suite.yaml"),
    "no text": suite(b"\xff\xfe\x00", "suite.yaml"),
    "no rows": suite("seeds: [0]\n", "suite.yaml", "rows"),
    "rows of a list": suite("rows: [a]\n", "suite.yaml: rows"),
    "a row of nothing": suite("rows: {a: }\n", "suite.yaml: row 'a'"),
    "an unknown key": suite(f"seed: [0]\n{ROW}\n", "suite.yaml", "Did you mean 'seeds'?"),
    "an unknown key of a row": suite(
        "rows: {a: {conifg: tiny.yaml}}\n", "suite.yaml", "Did you mean 'config'?"
    ),
    "config and stages": suite(
        "rows: {a: {config: tiny.yaml, stages: {}}}\n",
        "suite.yaml",
        "row 'a'",
    ),
    "no stages": suite("rows: {a: {stages: {}}}\n", "suite.yaml", "row 'a'"),
    "a missing config": suite("rows: {a: {config: nowhere}}\n", "suite.yaml", "unknown config"),
    "a broken config": Case(BENCH, ("tiny.yaml",), {"tiny.yaml": "a: [1"}),
    "a config of a list": Case(BENCH, ("tiny.yaml",), {"tiny.yaml": "- a\n"}),
    "a config that is a number": suite("rows: {a: {config: 3}}\n", "suite.yaml", "unknown config"),
    "seeds in words": suite(f"seeds: [a]\n{ROW}\n", "suite.yaml: seeds"),
    "no seeds": suite(f"seeds: []\n{ROW}\n", "suite.yaml: seeds"),
    "a negative seed": suite(f"seeds: [-1]\n{ROW}\n", "suite.yaml: seeds"),
    "a seed of a stage": suite("rows: {a: {config: tiny.yaml, seed: x}}\n", "suite.yaml", "seed"),
    "overrides of a list": suite(f"overrides: [1]\n{ROW}\n", "suite.yaml, overrides"),
    "overrides of a row": suite(
        "rows: {a: {config: tiny.yaml, overrides: 3}}\n",
        "row 'a', overrides",
    ),
    "a cycle": suite(
        "rows: {a: {stages: {x: {config: tiny.yaml, overrides: {model.p: '{y}'}}, "
        "y: {config: tiny.yaml, overrides: {model.p: '{x}'}}}}}\n",
        "a.x -> a.y",
    ),
    "an unknown stage": suite(
        "rows: {a: {config: tiny.yaml, overrides: {model.p: '{b}'}}}\n", "unknown stage"
    ),
    "an unknown row": suite(f"{ROW}\n", "ce", "suite suite", words="--rows vs"),
    "seeds on the command line": suite(f"{ROW}\n", "--seeds", "'a,b'", words="--seeds a,b"),
    "no job at a time": suite(f"{ROW}\n", "--jobs", "'0'", words="--jobs 0"),
    "an override without a value": suite(
        f"{ROW}\n", "--trainer.max_epochs", "--NAME VALUE", words="--trainer.max_epochs"
    ),
    "an override that is no yaml": suite(
        f"{ROW}\n", "--trainer.max_epochs", words="--trainer.max_epochs=["
    ),
    "a word": suite(f"{ROW}\n", "max_epochs", "--NAME VALUE", words="max_epochs 3"),
    "a seed that is too large": suite(
        f"{ROW}\n", "--seeds", "99999999999", words="--seeds 99999999999"
    ),
    "threads in words": Case(
        BENCH,
        ("OMP_NUM_THREADS", "'many'"),
        {"suite.yaml": f"{ROW}\n"},
        {"OMP_NUM_THREADS": "many"},
    ),
    "a row with a slash": suite("rows: {a/b: {config: tiny.yaml}}\n", "suite.yaml: row"),
    "a row without a name": suite("rows: {'': {config: tiny.yaml}}\n", "suite.yaml: row"),
    "a row twice": suite(
        "rows: {a: {config: tiny.yaml}, a: {config: tiny.yaml}}\n",
        "suite.yaml",
        "'a'",
    ),
    "brackets without an end": suite("rows: " + "[" * 3000, "suite.yaml"),
    "a folder that is a file": suite(f"{ROW}\n", "tiny.yaml", words="--folder tiny.yaml"),
    "a launcher": suite(f"{ROW}\n", "--launcher", "cloud", words="--launcher cloud"),
    "status of what was not run": Case("bench status suite", ("suite", "runs/bench")),
    "status of a damaged plan": Case(
        "bench status suite",
        ("runs/bench/suite.json", "ltbench bench run suite"),
        {"runs/bench/suite.json": '{"jobs": 3}'},
    ),
    "status of a plan without an end": Case(
        "bench status suite",
        ("runs/bench/suite.json", "ltbench bench run suite"),
        {"runs/bench/suite.json": "[" * 100_000},
    ),
    "status of no text": Case(
        "bench status suite",
        ("runs/bench/suite.json", "ltbench bench run suite"),
        {"runs/bench/suite.json": b"\xff\xfe"},
    ),
    "nothing to reproduce": Case("bench reproduce abc", ("abc", "benchmarks/results")),
    "reproduce a folder without a record": Case("bench reproduce images", ("images/record.json",)),
    "reproduce a damaged record": Case(
        "bench reproduce run",
        ("run/record.json",),
        {"run/record.json": cut},
    ),
    "reproduce what is not done": Case(
        "bench reproduce run",
        ("run/record.json", "failed"),
        {"run/record.json": changed(status="failed")},
    ),
    "reproduce a record without a config": Case(
        "bench reproduce run",
        ("run/record.json", "'config'"),
        {"run/record.json": changed(config=None)},
    ),
    "reproduce a record without an id": Case(
        "bench reproduce run",
        ("run/record.json", "job id"),
        {"run/record.json": changed(job_id=None)},
    ),
    "reproduce a record without metrics": Case(
        "bench reproduce run",
        ("run/record.json", "'metrics'"),
        {"run/record.json": changed(metrics=None)},
    ),
    "reproduce what starts from nothing": Case(
        "bench reproduce run",
        ("run/record.json", "gone.ckpt"),
        {"run/record.json": changed(lineage=[{"path": "gone.ckpt", "job_id": "1"}])},
    ),
    "tolerance": Case(
        "bench reproduce run --tolerance much", ("--tolerance", "ltbench bench reproduce")
    ),
}
NAMES = {
    "a command": Case("fti --config tiny.yaml", ("Did you mean 'fit'?",)),
    "a kind": Case("list method", ("method", "Did you mean 'methods'?")),
    "two kinds": Case("list methods configs", ("configs", "unrecognized arguments")),
    "an option of list": Case("list --jsn", ("--jsn", "unrecognized arguments")),
    "nothing to show": Case("show", ("the following arguments are required",)),
    "a name": Case("show emr", ("emr", "Did you mean 'erm'?")),
    "a file that is not there": Case("show nowhere.yaml", ("nowhere.yaml", "Did you mean 'erm'?")),
    "a folder": Case(
        "show dir.yaml", ("dir.yaml", "Did you mean 'deit_lt'?"), {"dir.yaml": lambda p: p.mkdir()}
    ),
    "a file that is no text": Case("show bad.yaml", ("bad.yaml",), {"bad.yaml": b"\xff\xfe"}),
    "data without a config": Case("data", ("--config",)),
    "data of a missing folder": Case(
        "data --config folder.yaml --data.root nowhere",
        ("nowhere",),
    ),
    "a picture of another kind": Case("data --config tiny.yaml --output tail.txt", ("--output",)),
    "a picture without an ending": Case("data --config tiny.yaml --output tail", ("--output",)),
    "a picture that is a folder": Case(
        "data --config tiny.yaml --output images", ("images", "name a file")
    ),
    "a cost without a config": Case("fit --dry-run", ("--config",)),
    "a cost of a missing folder": Case("{folder} --dry-run --data.root nowhere", ("nowhere",)),
}
CASES = {
    f"{kind}: {name}": case
    for kind, cases in {"leaderboard": BOARDS, "bench": SUITES, "name": NAMES}.items()
    for name, case in cases.items()
}
