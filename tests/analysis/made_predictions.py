"""Predictions of a made-up network, for tests that need no run."""

import numpy as np
import torch

from ltbench.metrics.counts import Classes
from ltbench.records import Predictions

COUNTS = [500, 300, 200, 90, 60, 40, 30, 12, 8, 5]


def predictions(images=400, seed=0, classes=10):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    logits = rng.normal(size=(images, classes)) + 2 * np.eye(classes)[labels]
    logits += np.log(COUNTS[:classes])
    scores = torch.from_numpy(logits).float().softmax(1)
    sure, predicted = scores.max(1)
    names = [f"c{i}" for i in range(classes)]
    counts = np.array(COUNTS[:classes])
    made = Predictions(np.arange(images), labels, predicted.numpy(), sure.numpy().astype(float))
    return made, Classes(names, counts), scores.log()
