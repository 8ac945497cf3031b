"""A device that is not there: its tensors hold values, and refuse to meet tensors of the host.

They are torch's ``meta`` tensors, of sizes alone, whose storage has a twin on the host. An
operation is done on the twins; one that would take tensors of both sides raises :class:`Mixed`, and
what makes the host wait, as it would for a GPU, is noted in :attr:`EmulatedDevice.waits`.
"""

import traceback
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ltbench import seeding

DEVICE = torch.device("meta")
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
INDEXING = {
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._unsafe_index.Tensor,
    torch.ops.aten._index_put_impl_.default,
}
LOOKS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
FROM_NUMBERS = {torch.tensor, torch.as_tensor, torch.asarray}


class Mixed(RuntimeError):
    """A tensor or generator of the host met one of the device."""


class DeviceGenerator(torch.Generator):
    """A generator of the device; it draws what one of the host draws from the same seed."""

    @property
    def device(self):
        return DEVICE


def on_device(value):
    return isinstance(value, Tensor) and value.device == DEVICE


def twin(tensor):
    """Return the values of a tensor of the device, as a tensor of the host that shares them."""
    storage = tensor.untyped_storage()
    if not storage.nbytes():
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
    values = torch.empty(0, dtype=tensor.dtype)
    return values.set_(
        storage.twin, tensor.storage_offset(), tuple(tensor.size()), tuple(tensor.stride())
    )


def emulated(values, owners):
    """Return the tensor of the device that has these values.

    ``owners`` are tensors of the device by the storage of their twins; it may be a view of one.
    """
    mine = values.untyped_storage()
    owner = owners.get(mine._cdata)
    if owner is None:
        storage = torch.UntypedStorage(mine.nbytes(), device=DEVICE)
        storage.twin = mine
    else:
        storage = owner.untyped_storage()
    inference = torch.is_inference_mode_enabled() if owner is None else owner.is_inference()
    with torch.inference_mode(inference):  # even there, a view of a usual tensor is one
        return torch.empty(0, dtype=values.dtype, device=DEVICE).set_(
            storage, values.storage_offset(), tuple(values.size()), tuple(values.stride())
        )


class Generators(TorchFunctionMode):
    """See to what torch does before it dispatches: generators, and tensors made from numbers."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func == Tensor.new_tensor:
            own, *args = args
            func, kwargs = torch.tensor, {"device": own.device, "dtype": own.dtype} | kwargs
        home = torch.device(kwargs.get("device") or "cpu") if func in FROM_NUMBERS else None
        if home == DEVICE and not on_device(args[0]):  # torch would lose the numbers
            return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        result = func(*args, **kwargs)
        draws = kwargs.get("generator") is not None and isinstance(result, Tensor)
        if draws and isinstance(kwargs["generator"], DeviceGenerator) != on_device(result):
            raise Mixed(f"{func.__name__}: the generator is not on the tensor's device")
        return result


@dataclass(frozen=True)
class Wait:
    """Something that makes the host wait for the device: the operation, and who asked for it."""

    operation: str
    line: str  # of ours, or of a library
    callers: frozenset[str]  # names of the functions that it happened in


class EmulatedDevice(TorchDispatchMode):
    """Do what is done on the device, and note what makes the host wait for it.

    Attributes:
        waits: What did while :attr:`watching`.
        operations: How many were done on the device.
    """

    def __init__(self):
        super().__init__()
        self.waits, self.watching, self.operations = [], False, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = [tensor for tensor in tensors if on_device(tensor)]
        target = kwargs.get("device")
        if not here and target != DEVICE:
            return func(*args, **kwargs)
        if func._can_decompose():  # as torch does itself, but not in inference mode
            with self:
                return func.decompose(*args, **kwargs)
        self.operations += 1
        hosts = [t for t in tensors if not on_device(t) and (t.ndim or func in COPIES)]
        if here and hosts and func not in COPIES:
            raise Mixed(f"{func}: {line()} has tensors of the host and of the device")
        if self.watching and waits(func, args, kwargs):
            callers = frozenset(frame.name for frame in traceback.extract_stack())
            self.waits.append(Wait(func.overloadpacket.__name__, line(), callers))
        if torch.Tag.inplace_view in func.tags:  # of sizes and strides alone
            func(*args, **kwargs)
            return args[0]
        twins = {id(tensor): twin(tensor) for tensor in here}
        owners = {twins[id(t)].untyped_storage()._cdata: t for t in here}
        own = {id(twins[id(t)]): t for t in here}
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        args, kwargs = tree_map_only(Tensor, lambda t: twins.get(id(t), t), (args, kwargs))
        result = func(*args, **kwargs)
        stays = (here and target is None) or target == DEVICE
        passed = {id(leaf) for leaf in tree_leaves((args, kwargs))}

        def back(values):
            if id(values) in own:
                return own[id(values)]
            return emulated(values, owners) if stays and id(values) not in passed else values

        return tree_map_only(Tensor, back, result)


def waits(func, args, kwargs):
    """Say whether an operation on the device makes the host wait."""
    if func in INDEXING:
        return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    if func == torch.ops.aten._to_copy.default:
        target = kwargs.get("device")
        moves = target is not None and target != args[0].device
        return moves and (target != DEVICE or not kwargs.get("non_blocking"))
    if func == torch.ops.aten.copy_.default:
        moves = args[0].device != args[1].device
        return moves and (not on_device(args[0]) or not (len(args) > 2 and args[2]))
    return bool(LOOKS & set(func.tags))


def line():
    """Name the line of ours that asked for an operation, or else that of a library."""
    frames = [f for f in traceback.extract_stack() if f.filename != __file__]
    ours = [frame for frame in frames if "ltbench" in Path(frame.filename).parts] or frames
    return f"{'/'.join(Path(ours[-1].filename).parts[-2:])}:{ours[-1].lineno}"


@contextmanager
def emulation():
    """Open the device: whatever asks for the CPU trains and evaluates on it."""
    make, reduce = SingleDeviceStrategy.__init__, Tensor.__reduce_ex__

    def generator(device, *key):
        kind = DeviceGenerator if torch.device(device) == DEVICE else torch.Generator
        return kind().manual_seed(seeding.derive(*key))

    def saved(tensor, *how):
        return reduce(tensor.detach().cpu() if on_device(tensor) else tensor, *how)

    with pytest.MonkeyPatch.context() as patch, EmulatedDevice() as device, Generators():
        patch.setattr(
            SingleDeviceStrategy,
            "__init__",
            lambda self, device="cpu", **rest: make(self, device=DEVICE, **rest),
        )
        patch.setattr(CPUAccelerator, "setup_device", lambda self, device: None)
        patch.setattr(seeding, "generator", generator)
        patch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
        patch.setattr(Tensor, "__reduce_ex__", saved)
        yield device
