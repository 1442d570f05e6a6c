"""Argument checks that operators share. A message says what was expected and what was given."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from numbers import Real

import torch
from torch import Tensor

__all__ = [
    "KERNEL_DTYPES",
    "assert_inside",
    "beyond_int32",
    "check_codebook",
    "check_finite",
    "check_floating",
    "check_int64",
    "check_number",
    "check_same_device",
    "check_seed",
    "check_tensor",
    "checked_integer",
    "checked_integers",
    "described",
    "dtype_name",
    "fits_codebook",
    "given",
    "misfit",
    "other_dtype",
    "type_in_words",
]

# The dtypes that kernels read; most kernels compute in float32.
KERNEL_DTYPES = frozenset((torch.float32, torch.bfloat16, torch.float16))


def dtype_name(dtype: torch.dtype) -> str:
    """`float32`, without the `torch.`."""
    return str(dtype).removeprefix("torch.")


def described(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {dtype_name(tensor.dtype)} on {tensor.device}"


def misfit(expected: str, **tensors: Tensor) -> ValueError:
    """The error for tensors that are not as expected; keywords are the names of the arguments."""
    got = ", ".join(f"{name} {described(tensor)}" for name, tensor in tensors.items())
    return ValueError(f"expected {expected}, got {got}.")


def other_dtype(
    dtypes: frozenset[torch.dtype] | tuple[torch.dtype, ...], **tensors: Tensor | None
) -> str | None:
    """A kernel's reason to decline: the first of the tensors that has none of the dtypes."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in dtypes:
            return f"{dtype_name(tensor.dtype)} {name.replace('_', ' ')}"
    return None


def beyond_int32(count: int, what: str) -> str | None:
    """A kernel's reason to decline: it numbers `what` in int32.

    The margin is for the last block, which also numbers some that do not exist.
    """
    return f"{count} {what}, too many for int32" if count >= (1 << 31) - (1 << 16) else None


def _as_integer(value: object) -> int | None:
    """The value of an integer of any type; None for anything else, and for True and False."""
    if isinstance(value, bool):
        return None
    # A size that a compiler leaves open must stay so: `operator.index` would fix it.
    if isinstance(value, (int, torch.SymInt)):
        return value  # type: ignore[return-value]
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def checked_integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """The value as an int, if it is an integer (of any type) in low..high, or at least low."""
    number = _as_integer(value)
    if number is None or number < low or (high is not None and number > high):
        bounds = f">= {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"expected {name} to be an integer {bounds}, got {value!r}.")
    return number


def checked_integers(name: str, values: object) -> list[int]:
    """The values as ints, if they are integers (of any type) in anything but a tensor."""
    if isinstance(values, Tensor):  # reading it would wait for a GPU
        raise ValueError(
            f"expected {name} to be a list of integers, got a tensor: pass {name}.tolist()."
        )
    numbers: list[int] = []
    for value in values if isinstance(values, Iterable) else [None]:
        number = _as_integer(value)
        if number is None:
            raise ValueError(f"expected {name} to be a list of integers, got {values!r}.")
        numbers.append(number)
    return numbers


def check_number(name: str, value: object) -> None:
    """Raise ValueError unless the value is a real number or a 0-d tensor, which operators read."""
    # The built-in types come first: a test for `Real` costs several times as much.
    is_real = isinstance(value, (float, int, Real, torch.SymFloat)) and not isinstance(value, bool)
    if not is_real and not (isinstance(value, Tensor) and value.dim() == 0):
        raise ValueError(f"expected {name} to be a number, got {value!r}.")


def type_in_words(value: object) -> str:
    """`a Tensor`, `an int`: what a value is, for a message that expected something else."""
    if value is None:
        return "None"
    name = type(value).__name__
    if name == "ndarray":
        return "a numpy array"
    return f"an {name}" if name[0] in "aeiouAEIO" else f"a {name}"


def given(name: str, value: object) -> str:
    """What the argument `name` is where a tensor was expected, and how to make it one."""
    kind = type_in_words(value)
    if kind == "a numpy array":
        return f"{kind}: pass torch.from_numpy({name})"
    if not isinstance(value, (list, tuple)):
        return kind
    if any(isinstance(each, Tensor) for each in value):
        return f"{kind} of tensors: pass torch.stack({name})"
    return f"{kind}: pass torch.tensor({name})"


def check_tensor(name: str, value: object) -> None:
    """Raise TypeError for an argument of an operator or a function that is not a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"expected {name} to be a tensor, got {given(name, value)}.")


def check_floating(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        check_tensor(name, tensor)
        if not tensor.is_floating_point():
            raise TypeError(f"expected {name} of a floating dtype, got {described(tensor)}.")


def check_int64(name: str, tensor: Tensor) -> None:
    check_tensor(name, tensor)
    if tensor.dtype != torch.int64:
        raise TypeError(f"expected {name} int64, got {described(tensor)}.")


def check_seed(seed: Tensor) -> None:
    """A seed is a tensor, so that a compiled graph does not depend on its value."""
    if not isinstance(seed, Tensor):
        raise TypeError(
            f"expected seed to be an int64 tensor, got {seed!r}: pass torch.tensor(seed)."
        )
    check_int64("seed", seed)
    if seed.shape not in ((), (2,)):
        raise ValueError(f"expected seed 0-d or [2], got {described(seed)}.")


def check_same_device(**tensors: Tensor | None) -> None:
    devices = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise RuntimeError(f"expected all tensors on one device, got {listed}.")


def fits_codebook(z: Tensor, codebook: Tensor) -> bool:
    """Whether z is `[N, D]` and codebook `[K, D]`, as kernels take them, on one device.

    This is a quick form of `check_codebook`, because for a single vector the checks are a good part
    of a call. It leaves dtypes to the operator's predicate.
    """
    shape = codebook.shape
    return (
        z.dim() == 2
        and len(shape) == 2
        and z.shape[1] == shape[1]
        and 0 not in shape
        and ((z.is_cpu and codebook.is_cpu) or z.device == codebook.device)
    )


def check_codebook(z: Tensor, codebook: Tensor) -> None:
    """z `[..., D]` against codebook `[K, D]`, K and D at least 1."""
    check_floating(z=z, codebook=codebook)
    if codebook.dim() != 2 or 0 in codebook.shape:
        raise ValueError(f"expected codebook [K, D] with K, D >= 1, got {described(codebook)}.")
    if z.dim() == 0 or z.shape[-1] != codebook.shape[1]:
        raise ValueError(
            f"expected z [..., D] with D={codebook.shape[1]} as in codebook "
            f"{list(codebook.shape)}, got {described(z)}."
        )
    check_same_device(z=z, codebook=codebook)


def check_finite(**tensors: Tensor) -> None:
    """Error on NaN or infinity. This is a synchronisation point on a GPU."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"expected finite values, got NaN or infinity in {name}.")


def assert_inside(indices: Tensor, first: int, end: int, *, name: str = "indices") -> None:
    """Raise RuntimeError for an index outside first..end − 1.

    On a GPU nobody waits: the error comes from a later call, when the stream has got here, and this
    process can then no longer use the GPU. `docs/operators.md` tells users.
    """
    torch._assert_async(
        ((indices >= first) & (indices < end)).all(),
        f"expected {name} in {first}..{end - 1}, got one outside.",
    )
