"""ERM: mixed images and averaged weights."""

import numpy as np
import pytest
import torch
from erm_digits import Watch, build, evaluate, watch_loss
from sklearn.metrics import balanced_accuracy_score
from support import fit, weights

from ltbench import records
from ltbench.optim.sam import SAM


@pytest.mark.parametrize(
    "options", [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}]
)
def test_mixing_gives_soft_targets_that_match_the_images(options):
    model, data = build(**options, gradient_rule=SAM())
    seen = []
    watch_loss(model, lambda logits, targets, counts, weight: seen.append(targets))
    fit(model, data, epochs=2)
    for first, second in zip(seen[::2], seen[1::2], strict=True):
        assert torch.equal(first, second)  # both of SAM's passes see the same mixture
        assert first.shape[1] == 10
        assert torch.allclose(first.sum(1), torch.ones(len(first)))
    shares = torch.cat([targets.max(1).values for targets in seen])
    assert (shares < 0.999).any()
    assert len({round(float(targets.max(1).values.min()), 4) for targets in seen[::2]}) > 3


def test_without_mixing_targets_are_labels():
    model, data = build()
    seen = []
    watch_loss(model, lambda logits, targets, counts, weight: seen.append(targets.dtype))
    fit(model, data)
    assert set(seen) == {torch.int64}


def test_the_average_is_that_of_the_weights_after_each_step():
    raw = Watch(lambda trainer, model: weights(model))
    model, data = build(ema_decay=0.9)
    fit(model, data, epochs=2, callbacks=[raw])
    average = raw.seen[0]
    for now in raw.seen[1:]:
        average = 0.9 * average + 0.1 * now
    assert torch.allclose(weights(model), average, atol=1e-5)
    assert not torch.allclose(weights(model), raw.seen[-1], atol=1e-3)


def test_with_averaging_the_average_is_saved_and_tested(ltbench, tiny, tmp_path):
    words = ["--config", tiny, "--model.init_args.ema_decay", 0.95]
    done = ltbench("fit", *words)
    assert done.code == 0, done.err
    (folder,) = (tmp_path / "runs").iterdir()
    record = records.read_record(folder / "record.json")
    assert record["weights"] == "averaged"
    _, data = build()
    data.setup()
    for selection in ("last", "best"):
        saved = torch.load(folder / f"checkpoints/{selection}.ckpt", weights_only=True)
        predicted, labels = evaluate(saved["state_dict"], data, "test")
        with np.load(folder / f"predictions_{selection}.npz") as stored:
            assert (stored["prediction"] == predicted).mean() > 0.99
            raw, _ = evaluate(saved["current_model_state"], data, "test")
            assert (stored["prediction"] == raw).mean() < 0.99
        metrics = record["metrics"][selection]
        assert metrics["test"]["accuracy"] == pytest.approx((predicted == labels).mean(), abs=0.003)
        predicted, labels = evaluate(saved["state_dict"], data, "val")
        expected = balanced_accuracy_score(labels, predicted)
        assert metrics["val"]["mean_recall"] == pytest.approx(expected, abs=0.02)
    again = ltbench("test", *words, "--ckpt_path", folder / "checkpoints/last.ckpt")
    assert f" {100 * record['metrics']['last']['test']['accuracy']:.1f} " in again.out
