"""A GPU's tensors without one: torch's fake tensors know shape, type and device but hold no values.

Reading a value on the host (`.item()`, a comparison in an `if`) and mixing devices are errors of torch's own;
copies from the device to the host, which make the host wait as well, are refused here, and float64 where a
GPU without it is pretended.
"""

from contextlib import contextmanager
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hapicl.common.system import devices


def pretend(value):
    """A fake CUDA tensor like this one; only inside `FakeTensorMode`."""
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")


def pretend_module(module):
    """Move parameters and buffers to the pretended device, in place."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = torch.nn.Parameter(pretend(value), value.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = pretend(value)


class CopiedToHost(AssertionError):
    """A tensor of the device was copied to the host, which waits for it."""


class _NoCopyToHost(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        given = {value.device.type for value in tree_leaves((arguments, options)) if _has_values(value)}
        made = {value.device.type for value in tree_leaves(result) if _has_values(value)}
        if "cuda" in given and "cpu" in made:
            raise CopiedToHost(f"{function} copies from the device to the host")
        return result


def _has_values(value):
    """A tensor that is not a scalar of the host's (those enter kernels as plain numbers)."""
    return isinstance(value, torch.Tensor) and value.dim() > 0


class WiderThanFloat32(AssertionError):
    """A tensor would be float64 on a device that has none."""


class _NoFloat64(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and (value.device.type, value.dtype) == (
                "cuda",
                torch.float64,
            ):
                raise WiderThanFloat32(f"{function} gives float64 on the device")
        return result


@contextmanager
def fake_cuda():
    """Within it tensors are fake, and autocast believes in a GPU that knows bfloat16."""
    believed = {
        "torch.cuda.amp.common.amp_definitely_not_available": False,
        "torch.cuda.is_bf16_supported": True,
    }
    patches = [mock.patch(name, return_value=value) for name, value in believed.items()]
    for patch in patches:
        patch.start()
    try:
        with FakeTensorMode(), _NoCopyToHost():
            yield
    finally:
        for patch in patches:
            patch.stop()


@contextmanager
def fake_gpu_without_float64():
    """As `fake_cuda`, of a GPU without float64, like Apple's (torch cannot pretend mps)."""
    with mock.patch.object(devices, "WITHOUT_FLOAT64", {"cuda"}), fake_cuda(), _NoFloat64():
        yield
