"""What was made from a prior or a plan, kept for the next draw for as long as its owner lives.

`made_of` is the one way from weights that others may change to what an engine reads: what it gives
was made from one state of the weights, and has no memory in common with them.
"""

from __future__ import annotations

import os
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakKeyDictionary, WeakSet

from vqvae2_fast.sampling.fingerprint import fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from torch import Tensor, nn

__all__ = ["Kept", "WeightsChangedError", "made_of", "made_together", "tensors_of"]

Owner = TypeVar("Owner")
Value = TypeVar("Value")
_all: WeakSet[Kept[Any, Any]] = WeakSet()


class Kept(Generic[Owner, Value]):
    """Values that were made from an owner, by key, kept for as long as the owner lives.

    A value must not hold its owner, or neither would ever be freed.

    Args:
        capacity: The most values that are kept for one owner.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = RLock()
        _all.add(self)
        # The values of each owner, least recently used first.
        self._of_owner: WeakKeyDictionary[Owner, dict[Hashable, Value]] = WeakKeyDictionary()

    def get(self, owner: Owner, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value kept under a key, or a new one. It may be in use elsewhere at the same time.

        Threads that ask at the same time wait for the first, because they would make the same
        value. The least recently used values are dropped before a new one is made, which may need
        their memory.
        """
        with self._lock:
            values = self._of_owner.get(owner, {})
            if key in values:
                value = values.pop(key)
            else:
                self._drop(values, self._capacity - 1)
                value = make()
            # `make` may have kept others of this owner.
            values = self._of_owner.setdefault(owner, {})
            values[key] = value
            self._drop(values, self._capacity)
            return value

    def count(self, owner: Owner) -> int:
        """How many values are kept for an owner."""
        return len(self._of_owner.get(owner, {}))

    @staticmethod
    def _drop(values: dict[Hashable, Value], left: int) -> None:
        while len(values) > left:
            del values[next(iter(values))]


class _State:
    """The weights of a module as they were once, of which engines keep what they made."""


# Only of the latest weights, because what is made of them may be as large.
_states: Kept[nn.Module, _State] = Kept(capacity=1)
_made: Kept[_State, Any] = Kept(capacity=6)


class WeightsChangedError(RuntimeError):
    """Weights changed while they were read."""

    def __init__(self) -> None:
        super().__init__(
            "The weights changed while they were read, as by a thread that trains the model. Use "
            "it between two steps of that thread, or use a copy of it."
        )


def made_of(module: nn.Module, form: Hashable, make: Callable[[nn.Module], Value]) -> Value:
    """What `make` gives for a module with its weights as they are now.

    It is made once for each form and kept until the weights change.

    Args:
        form: A key for what `make` gives.
        make: Called with a copy of the module that nobody else has, whose memory it may keep.

    Raises:
        WeightsChangedError: They changed at each of three attempts.
    """
    return made_together(module, {form: make})[form]


def made_together(
    module: nn.Module, makes: Mapping[Hashable, Callable[[nn.Module], Any]]
) -> dict[Hashable, Any]:
    """`made_of` for each form, all of the same weights."""
    attempts = 3
    while True:
        before = _state_of(module)

        def checked(make: Callable[[nn.Module], Any], before: Hashable = before) -> Any:
            # The copy is compared: weights that are swapped with others and back, while they are
            # read, look the same afterwards.
            copy = _copy_of(module)
            if _state_of(copy) != before:
                raise WeightsChangedError
            return make(copy)

        try:
            state = _states.get(module, before, _State)
            return {
                form: _made.get(state, form, partial(checked, make)) for form, make in makes.items()
            }
        except WeightsChangedError:
            attempts -= 1
            if not attempts:
                raise


def _state_of(module: nn.Module) -> Hashable:
    parts = _parts_of(module)
    # With their names, since a parametrization has the same tensors under others.
    names = tuple([(type(part), *part._parameters, *part._buffers) for part in parts])
    return names, fingerprint(_tensors_of(parts))


def _copy_of(module: nn.Module) -> nn.Module:
    """A module with weights of its own. Everything else is shared: a deepcopy would refuse what
    users hang on a module, such as locks."""
    copies: dict[int, Any] = {}

    def tensor(held: Tensor | None) -> Tensor | None:
        if held is None:
            return None
        return copies.setdefault(id(held), held.detach().clone())

    def part(held: nn.Module | None) -> nn.Module | None:
        if held is None:
            return None
        if id(held) not in copies:
            copy = copies[id(held)] = object.__new__(type(held))
            vars(copy).update(
                vars(held),
                _parameters={name: tensor(t) for name, t in held._parameters.items()},
                _buffers={name: tensor(t) for name, t in held._buffers.items()},
                _modules={name: part(m) for name, m in held._modules.items()},
            )
        return copies[id(held)]

    copied = part(module)
    assert copied is not None
    return copied


def tensors_of(module: nn.Module) -> list[Tensor]:
    """All parameters and buffers, in less than half the time of parameters() and buffers()."""
    return _tensors_of(_parts_of(module))


def _tensors_of(parts: list[nn.Module]) -> list[Tensor]:
    held = [of for part in parts for of in (part._parameters, part._buffers)]
    return [tensor for of in held for tensor in of.values() if tensor is not None]


def _parts_of(module: nn.Module) -> list[nn.Module]:
    """What modules() gives, level by level. It takes a tenth of the time."""
    parts, known = [module], {id(module)}
    for part in parts:
        for child in part._modules.values():
            if child is not None and id(child) not in known:
                known.add(id(child))
                parts.append(child)
    return parts


def _renew_locks() -> None:
    """In a forked process: a thread that held a lock, and is not there, cannot let go of it."""
    for kept in _all:
        kept._lock = RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
