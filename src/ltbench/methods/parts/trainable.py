"""Which parameters of a network learn: all, the head alone, normalisation layers, biases."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ltbench.errors import unknown_name
from ltbench.models import penultimate

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def _head(net: nn.Module) -> Iterator[nn.Parameter]:
    for head in penultimate.classifiers(net).values():
        yield from head.parameters()


def _norms(net: nn.Module) -> Iterator[nn.Parameter]:
    for module in net.modules():
        if isinstance(module, _NORMS):
            yield from module.parameters(recurse=False)


def _biases(net: nn.Module) -> Iterator[nn.Parameter]:
    return (p for name, p in net.named_parameters() if name.rpartition(".")[2] == "bias")


SELECTIONS: dict[str, Callable[[nn.Module], Iterable[nn.Parameter]]] = {
    "all": nn.Module.parameters,
    "head": _head,
    "norms": _norms,
    "biases": _biases,
}
"""Names in a config -> those parameters of a network."""


def check_selections(names: Sequence[str]) -> None:
    """Raise a UserError for a name that is not in :data:`SELECTIONS`."""
    for name in names:
        if name not in SELECTIONS:
            raise unknown_name("selection in trainable", name, SELECTIONS)


def let_learn(net: nn.Module, names: Sequence[str]) -> None:
    """Let these parameters of a network learn, and no other."""
    net.requires_grad_(False)
    for name in names:
        for parameter in SELECTIONS[name](net):
            parameter.requires_grad_()


def head_alone(names: Sequence[str]) -> bool:
    """Say whether no more than the classifier learns: then features never change."""
    return {*names} <= {"head"}


def rest(net: nn.Module, names: Sequence[str]) -> None:
    """Put what has nothing to learn into evaluation mode, batch norm's statistics included.

    Where the classifier alone learns, that is the whole network, dropout included: frozen features
    are the same whatever the batch, as in the classifier re-training of Kang et al., arXiv
    1910.09217.

    Args:
        net: The network.
        names: What of it learns.
    """
    if head_alone(names):
        net.eval()
        return
    for module in net.modules():
        own = [*module.parameters()]
        if own and not any(parameter.requires_grad for parameter in own):
            module.eval()


@contextmanager
def evaluation_mode(net: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and each of its modules back into its own at the end."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
