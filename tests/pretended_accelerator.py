"""An accelerator that is not there: tensors of the device ``pretended:0`` whose data lie on the CPU.

As on a GPU, an operation on tensors of both devices is an error, and so are a CPU generator for a tensor of the device
and NumPy's view of one. With it, a machine without a GPU can tell whether code would run on one. :func:`register` makes
the device known to PyTorch for the rest of the process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from bundle_docs import run_in_process
from monai.data import MetaTensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from segcft_ext.figures import pictures

DEVICE = "pretended:0"
aten = torch.ops.aten
TRANSFERS = {aten.copy_.default, aten._to_copy.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class Pretended(torch.Tensor):
    """A tensor that says that it is on the device."""

    data_on_cpu: torch.Tensor

    @staticmethod
    def __new__(cls, data: torch.Tensor) -> Pretended:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, data.size(), data.stride(), data.storage_offset(), dtype=data.dtype, device=torch.device(DEVICE)
        )
        made.data_on_cpu = data
        return made

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(operation, args, kwargs or {})

    def tolist(self) -> Any:
        return self.data_on_cpu.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy")

    __array__ = numpy

    def __format__(self, text: str) -> str:
        return format(self.data_on_cpu, text)

    def __repr__(self, **_: Any) -> str:
        return f"{self.data_on_cpu!r} on {DEVICE}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.detach().cpu().__reduce_ex__(protocol)


def _run(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, Pretended)]
    foreign = [tuple(t.shape) for t in tensors if not isinstance(t, Pretended) and t.ndim]
    if operation in INDEXING and isinstance(args[0], Pretended):
        foreign = []  # indices may be on the CPU
    if there and foreign and operation not in TRANSFERS:
        raise RuntimeError(f"{operation}: expected all tensors on the same device, found {DEVICE} and cpu {foreign}")
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type == "cpu":
        raise RuntimeError(f"{operation}: expected a generator of {DEVICE}, found one of the CPU")
    result_there = isinstance(args[0], Pretended) if operation is aten.copy_.default else bool(there)
    on_cpu = dict(kwargs)
    if kwargs.get("device") is not None:
        result_there = kwargs["device"].type == torch.device(DEVICE).type
        on_cpu["device"] = torch.device("cpu")
    known = {id(tensor.data_on_cpu): tensor for tensor in there}
    result = operation(*tree_map(_data, args), **tree_map(_data, on_cpu))
    if torch.Tag.inplace_view in operation.tags:
        with no_dispatch():
            operation(*args, **kwargs)

    if operation is aten._local_scalar_dense.default or not result_there:
        return result

    def placed(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return known[id(value)] if id(value) in known else Pretended(value)

    return tree_map(placed, result)


def _data(value: Any) -> Any:
    return value.data_on_cpu if isinstance(value, Pretended) else value


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def _factory(function: Callable[..., torch.Tensor]) -> Callable[..., Pretended]:
    return lambda *args, **kwargs: Pretended(function(*args, dtype=kwargs.get("dtype")))


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    _data(target).copy_(_data(source))
    return target


def register() -> torch.library.Library:
    """Make the device known; what is returned must live as long as it is used."""
    _setup_privateuseone_for_python_backend("pretended", backend_module=_Module())
    library = torch.library.Library("aten", "IMPL", "PrivateUse1")
    for name, function in (
        ("empty.memory_format", torch.empty),
        ("empty_strided", torch.empty_strided),
        ("arange", torch.arange),
        ("arange.start", torch.arange),
        ("arange.start_step", torch.arange),
        ("linspace", torch.linspace),
        ("randperm", torch.randperm),
    ):
        library.impl(name, _factory(function))
    library.impl("_copy_from", _copy_from)
    # A tensor has one class only, so that there is no MetaTensor on this device.
    plain = MetaTensor.__new__
    MetaTensor.__new__ = staticmethod(  # type: ignore[method-assign]
        lambda cls, x, *args, **kwargs: x if isinstance(x, Pretended) else plain(cls, x, *args, **kwargs)
    )
    return library


def main(kind: str, given: str) -> None:
    """Run stages (the arguments of ``monai.bundle run``), or print the error of each expression with ``there``."""
    registered = register()
    pictures.DPI = 20  # drawn, but not for looking at
    errors = []
    for each in json.loads(given):
        if kind == "--stages":
            run_in_process(["run", *each, "--device", f"$torch.device('{DEVICE}')"])
            continue
        try:
            eval(each, {"torch": torch, "there": torch.ones(2).to(DEVICE)})
            errors.append("")
        except (RuntimeError, TypeError) as error:
            errors.append(str(error))
    print(json.dumps(errors))
    del registered


if __name__ == "__main__":
    main(*sys.argv[1:])
