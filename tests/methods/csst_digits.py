"""What the tests of CSST share."""

import torch

PRIOR = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)


COVERAGE = (1 / (3 * PRIOR)).diag() + torch.tensor([0.31, 0.335, 0.35], dtype=torch.float64)
