"""Published numbers are set beside ours only where the two can be compared."""

import json

import pytest
import yaml

from ltbench import catalog, shipped
from ltbench.bench.score import claims, leaderboard, results
from ltbench.bench.show import tables
from ltbench.errors import UserError
from ltbench.metrics.catalogue import METRICS

CLAIM = {
    "paper": "1234.56789",
    "dataset": "digits",
    "table": "table 1",
    "protocol": "4 epochs",
    "certainty": "verified",
    "needs": {"data.source": "Digits", "config.trainer.max_epochs": 4, "training_images": 195},
}


@pytest.fixture
def judged(make_run, tmp_path):
    """What becomes of a claim about row ``ce``, which was run with one seed."""
    make_run("ce", 0)
    board = leaderboard.build(results.of_folder(tmp_path / "runs"))

    def judge(metrics, row="ce", **changes):
        path = tmp_path / "claims.yaml"
        path.write_text(yaml.safe_dump([{**CLAIM, "rows": {row: metrics}, **changes}]))
        return claims.judge(claims.read(path), board)

    return judge, board.tables[0].lines[0].estimates


@pytest.mark.parametrize(
    ("offset", "status"), [(0, "matched"), (0.4, "matched"), (20, "short"), (-20, "better")]
)
def test_the_status_says_how_far_a_claim_is(judged, offset, status):
    judge, estimates = judged
    claimed = 100 * estimates["accuracy"].mean + offset
    (verdict,) = judge({"accuracy": claimed})
    assert verdict.status == status
    assert verdict.gap == pytest.approx(-offset / 100)
    assert f"{-offset:+.1f}" in tables.claim_cells(verdict) or offset == 0


@pytest.mark.parametrize(
    ("own", "start", "mu"), [(4, None, 4), (4, 2, 2), (None, None, None), (None, 2, 2)]
)
def test_mu_is_that_of_the_run_that_was_started_from(own, start, mu, make_run, tmp_path):
    def make(name, mu, **changes):
        folder = make_run(name, 0, **changes)
        record = json.loads((folder / "record.json").read_text())
        if mu is not None:
            record["config"]["data"]["init_args"]["mu"] = mu
        (folder / "record.json").write_text(json.dumps(record))
        return record["job_id"]

    lineage = []
    if start is not None:
        lineage = [{"role": "init_from", "job_id": make("fixmatch_la", start)}]
    make("selmix", own, lineage=lineage)
    rows = results.of_folder(tmp_path / "runs")
    path = tmp_path / "claims.yaml"
    for wanted in {1, 2, 4} - {mu}:
        claim = {**CLAIM, "needs": {"mu": wanted}, "rows": {"selmix": {"accuracy": 1}}}
        path.write_text(yaml.safe_dump([claim]))
        (verdict,) = claims.judge(claims.read(path), leaderboard.build(rows))
        assert verdict.reasons == [f"mu is {mu}, not {wanted}"]


def test_claims_about_self_training_ask_for_network_and_mu():
    """A start of SelMix with four times as many unlabelled images, or channels, is another one."""
    trained = [c for c in claims.read() if c.row.startswith(("fixmatch", "csst", "selmix"))]
    known = [c for c in trained if c.dataset.startswith("cifar") and "not known" not in c.protocol]
    assert len(known) > 15
    for claim in known:
        assert {"config.model.backbone", "mu"} <= claim.needs.keys(), claim.source


def test_what_cannot_be_compared_says_why(judged):
    judge, _ = judged
    (verdict,) = judge({"accuracy": 50}, needs={"config.trainer.max_epochs": 200, "data.x": 1})
    assert verdict.status == "not comparable"
    assert verdict.reasons == ["max epochs is 4, not 200", "x is None, not 1"]
    (verdict,) = judge({"fid": 3})
    assert (verdict.status, verdict.reasons) == ("not comparable", ["it has no fid"])


def test_a_row_that_was_not_run_says_so_and_other_data_is_left_out(judged):
    judge, _ = judged
    (verdict,) = judge({"accuracy": 50}, row="vs")
    assert (verdict.status, verdict.ours, verdict.gap) == ("not run", None, None)
    assert judge({"accuracy": 50}, dataset="cifar10") == []


def test_a_row_is_known_by_its_name_or_its_configs(judged, make_run, tmp_path):
    make_run("vs_digits", 0)
    board = leaderboard.build(results.of_folder(tmp_path / "runs"))
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump([{**CLAIM, "rows": {"vs": {"accuracy": 1}}}]))
    (verdict,) = claims.judge(claims.read(path), board)
    assert verdict.line == "vs_digits"


@pytest.mark.parametrize(
    ("source", "count"), [("CIFAR-10 (JPEG)", 1), ("cifar10", 1), ("Flowers", 0)]
)
def test_a_folder_is_judged_by_the_claims_of_the_set_that_it_is_called_after(
    source, count, make_run, tmp_path
):
    folder = make_run("ce", 0, dataset="folder")
    record = json.loads((folder / "record.json").read_text())
    names = [str(c) for c in range(10)]
    record["data"] |= {"source": source, "class_names": names, "class_counts": [50] * 10}
    del record["metrics"]["last"]["test"]["per_class_recall"]
    (folder / "record.json").write_text(json.dumps(record))
    board = leaderboard.build(results.of_folder(tmp_path / "runs"))
    path = tmp_path / "claims.yaml"
    rows = {"ce": {"accuracy": 50}}
    path.write_text(yaml.safe_dump([{**CLAIM, "dataset": "cifar10", "rows": rows}]))
    assert len(claims.judge(claims.read(path), board)) == count


def test_a_damaged_list_of_claims_is_named(tmp_path):
    path = tmp_path / "claims.yaml"
    path.write_text("- paper: x\n")
    with pytest.raises(UserError, match=r"claims\.yaml"):
        claims.read(path)


def test_the_shipped_claims_are_complete_and_about_metrics_that_there_are():
    published = claims.read(shipped.folder("benchmarks") / "claims.yaml")
    assert len(published) > 100
    for claim in published:
        assert claim.metric in METRICS
        assert claim.certainty in ("verified", "second-hand", "unverified")
        assert claim.dataset in claims.DATASETS
        assert claim.table
        assert claim.protocol
        assert not METRICS[claim.metric].percent or 0 < claim.value < 1


@pytest.mark.parametrize(
    "name", [s for s in catalog.suites() if s not in ("smoke", "cifar10_generation")]
)
def test_claims_and_suites_use_the_same_names(name):
    """A row of a shipped suite that has a published number is called as in the claims."""
    from ltbench.bench.run import suite

    rows = set(suite.read(suite.find(name)).rows)
    claimed = {claim.row for claim in claims.read()}
    assert rows & claimed
