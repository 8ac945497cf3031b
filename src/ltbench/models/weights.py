"""Weights of a file: read without running anything in it, and filled into a network.

Networks that others released call their tensors by other names; those are told apart here.
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ltbench import untrusted
from ltbench.errors import UserError
from ltbench.models import penultimate
from ltbench.models.heads import NormedLinear

_COUNTER = "num_batches_tracked"


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint or a plain state dict without executing anything in it.

    Raises:
        UserError: The file is missing, damaged, unsafe, or holds something else.
    """
    if not path.exists():
        raise UserError(f"there is no checkpoint {path}.")
    try:
        state = untrusted.load_checkpoint(path)
    except Exception as error:  # torch raises errors of many types on other files
        raise UserError(
            f"{path} cannot be loaded safely as a checkpoint: {_reason(error)}"
        ) from error
    if not isinstance(state, dict):
        raise UserError(f"{path} should hold a state dict, not {type(state).__name__}.")
    return state


def _reason(error: Exception) -> str:
    # torch's own first line advises to load without its safeguard.
    if isinstance(error, PermissionError):
        return "you may not read it."
    if isinstance(error, OSError | untrusted.Overgrown):
        return f"{getattr(error, 'strerror', None) or error}."
    if named := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it names {named[1]}, which loading it would run."
    return "it is cut off, or torch.save did not write it."


def below(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights whose names start with ``prefix``, without it; all, where none does."""
    inner = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    return inner or weights


def fill(network: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Give a network the weights of a file.

    Args:
        network: Gets them.
        weights: By the network's names, by those of a released network, or in the same order.
        where: Names the file, for messages.

    Raises:
        UserError: They do not fit.
    """
    try:
        network.load_state_dict(renamed(weights, network, where))
    except (RuntimeError, AttributeError, TypeError) as error:
        reason = str(error).splitlines()[1:2] or [str(error)]
        raise UserError(f"{where} does not fit its backbone: {reason[0].strip()}") from error


def renamed(weights: dict[str, Tensor], network: nn.Module, where: str) -> dict[str, Tensor]:
    """Call the weights of released networks what they are called in the network.

    PaCo (arXiv 2107.12028) has the network in ``encoder_q`` and its classifier in ``linear``,
    beside what training alone needs. LDAM-DRW (arXiv 1906.07413) calls the classifier ``linear``
    too, and has the class vectors of a cosine one in columns. Where all names are others, tensors
    are the network's in the same order.

    Raises:
        UserError: They are paired in order, and a shape or the last part of a name differs.
    """
    own, modules = network.state_dict(), dict(network.named_modules())
    last = getattr(network, "get_classifier", lambda: None)()
    head = next((name for name, module in modules.items() if module is last), "linear")
    paco = any(name.startswith("encoder_q.") for name in weights)
    if not (weights.keys() & own.keys() or paco):
        return _paired(weights, own, head, where)
    if head == "linear" or f"{head}.weight" not in own:
        return weights
    classifier = {k: v for k, v in weights.items() if k.startswith("linear.")}
    fitting = {k: v for k, v in weights.items() if k not in classifier}
    if paco:
        inside = below("encoder_q.", weights).items()
        fitting = {k: v for k, v in inside if k in own and not k.startswith(f"{head}.")}
    fitting |= {k.replace("linear", head, 1): v for k, v in classifier.items()}
    name, shape = f"{head}.weight", own[f"{head}.weight"].shape
    if isinstance(modules[head], NormedLinear) and name in fitting:
        vectors = fitting[name]
        in_columns = vectors.shape != shape == vectors.T.shape
        fitting[name] = vectors.T if in_columns else vectors
    return fitting


def _paired(
    weights: dict[str, Tensor], own: dict[str, Tensor], head: str, where: str
) -> dict[str, Tensor]:
    """Pair tensors with those of a network in order; batch norm's counters are the network's.

    The classifier, ``head``, may have other classes.
    """
    tensors, places = (
        [(k, v) for k, v in state.items() if isinstance(v, Tensor) and not k.endswith(_COUNTER)]
        for state in (weights, own)
    )
    if len(tensors) != len(places):
        raise UserError(
            f"{where} does not fit its backbone: none of its names are the backbone's, and it has "
            f"{len(tensors)} tensors, the backbone {len(places)}."
        )
    for (key, tensor), (name, value) in zip(tensors, places, strict=True):
        same_shape = tensor.shape == value.shape or name.startswith(f"{head}.")
        if not same_shape or key.rpartition(".")[2] != name.rpartition(".")[2]:
            raise UserError(
                f"{where} does not fit its backbone: its {key} {tuple(tensor.shape)} is in the "
                f"place of {name} {tuple(value.shape)}."
            )
    counters = {name: value for name, value in own.items() if name.endswith(_COUNTER)}
    return counters | {name: v for (name, _), (_, v) in zip(places, tensors, strict=True)}


def classes_of(weights: dict[str, Tensor], network: nn.Module, where: str) -> int | None:
    """Return how many classes the weights of a file know; None where they have no classifier."""
    head = next(iter(penultimate.classifiers(network).values()))
    name = next(name for name, module in network.named_modules() if module is head)
    vectors = renamed(weights, network, where).get(f"{name}.weight")
    return None if vectors is None else len(vectors)
