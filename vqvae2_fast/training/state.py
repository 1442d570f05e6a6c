"""What a run keeps from step to step, and its checkpoints: how they are written and continued."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import vqvae2_fast
from vqvae2_fast.checkpoints.checkpoint import load_training, save_training
from vqvae2_fast.checkpoints.locate import step_folder
from vqvae2_fast.checkpoints.models import class_of
from vqvae2_fast.runs.folder import best_record, better, keep_best, remove_old
from vqvae2_fast.runs.ranks import Ranks
from vqvae2_fast.training.optimizer import PolyakAverage, kept_moments, make_optimizer
from vqvae2_fast.training.sharded import ShardedSave, is_sharded, local, own_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vqvae2_fast.checkpoints.checkpoint import TrainingState
    from vqvae2_fast.training.companions import Companion
    from vqvae2_fast.training.config import TrainConfig

__all__ = ["OtherRunError", "TrainingRun", "versions"]


class OtherRunError(ValueError):
    """The run in a folder is another one than would be continued there.

    Args:
        what: How they differ.
        remedy: What a caller of `train` can do. A command replaces it by what its options can do.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what} {remedy}")
        self.what = what


class TrainingRun:
    """A model in training with its optimiser and average, its step, and its best validation.

    Random numbers and batches are functions of (seed, step): a checkpoint keeps none of them. The
    model is as `prepared` left it: sharded, if it is to be.

    Args:
        identity: What `Stage.identity` gave, and the versions.
        ranks: The processes of the run, by default those of the group.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        identity: Mapping[str, Any],
        companion: Companion | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.model, self.config, self.companion = model, config, companion
        self.optimizer = make_optimizer(model, config)
        self.average = PolyakAverage(model, config.average_decay) if config.average_decay else None
        self.identity = identity
        self.ranks = ranks or Ranks.of_group()
        self.cut = config.cut(self.ranks.rank, self.ranks.count)
        self.step = 0
        self.metrics: dict[str, float] = {}
        self.best: dict[str, Any] | None = None
        self._saving: ShardedSave | None = None

    def note_best(self, metric: str, *, lower: bool) -> bool:
        """Whether the latest validation is the best so far; it is then the record."""
        value = self.metrics[metric]
        if not better(value, self.best["value"] if self.best else None, lower=lower):
            return False
        self.best = {"step": self.step, "metric": metric, "value": value}
        return True

    def save(self, run: Path, class_names: Sequence[str]) -> None:
        """Write the checkpoint of this step into a run's folder; all processes call this.

        That of a sharded model is written beside the next steps, until `finish_save`.
        """
        self.finish_save(run, block=True)
        path, average = step_folder(run, self.step), self.average.weights if self.average else None
        moments = {
            f"{name}.{key}": value
            for name, weight in self.model.named_parameters()
            for key, value in self.optimizer.state[weight].items()
        }
        state = {
            "step": self.step,
            "train": asdict(self.config),
            "global_batch": self.cut.batch_size,
            "identity": self.identity,
            "metrics": self.metrics,
            "best": self.best,
        }
        if is_sharded(self.model):
            parts = {"model": self.model.state_dict(), "average": average, "optimizer": moments}
            tensors = {
                f"{part}.{name}": local(tensor)
                for part, named in parts.items()
                for name, tensor in (named or {}).items()
                if self.ranks.rank == 0 or local(tensor) is not tensor
            }
            self._saving = ShardedSave(
                self.ranks, path, self.model, tensors, state=state, class_names=class_names
            )
        elif self.ranks.rank == 0:
            save_training(
                path,
                self.model,
                optimizer=moments,
                state=state,
                average=average,
                companion=self.companion.tensors() if self.companion else None,
                class_names=class_names,
            )
            self.tidy(run)

    def finish_save(self, run: Path, *, block: bool) -> None:
        """Complete the checkpoint that is being written, if it is ready or `block` says so."""
        if self._saving is not None and self._saving.finish(block=block):
            self._saving = None
            if self.ranks.rank == 0:
                self.tidy(run)

    def abandon_save(self) -> None:
        """Leave nothing of a checkpoint that is being written."""
        if self._saving is not None:
            self._saving.abandon()

    def tidy(self, run: Path) -> None:
        """Bring best/ and the number of checkpoints in line with the newest one."""
        if self.best is not None:
            keep_best(run, self.best["step"])
        remove_old(run, self.config.keep)

    def restore(self, path: Path, *, accept_changed: bool = False) -> list[str]:
        """Take over the checkpoint of an earlier part of the run; returns the accepted changes.

        Raises as `compared` does.
        """
        saved, changes = self.compared(path, accept_changed=accept_changed)
        model: Any = self.model
        done, before = saved.state["step"], saved.state["train"]
        if is_sharded(model):
            found = saved.model.state_dict()
            for name, tensor in model.state_dict().items():
                local(tensor).copy_(own_rows(found[name], tensor))
        else:
            model.load_state_dict(saved.model.state_dict())
        for name, weight in model.named_parameters():
            self.optimizer.state[weight] = {
                key.removeprefix(f"{name}."): _as_moment(value, weight)
                for key, value in saved.optimizer.items()
                if key.rpartition(".")[0] == name
            }
        if self.companion is not None and saved.companion is not None:
            self.companion.take(saved.companion)
        if self.average is not None:
            # If the earlier part kept no average, one begins here.
            weights = {name: local(w.detach()) for name, w in model.named_parameters()}
            for name, value in (saved.average or weights).items():
                local(self.average.weights[name]).copy_(value)
        self.step = done
        # An interruption left this step, so the latest validation is of an earlier one.
        unvalidated = done == self.config.steps != before.get("steps")
        self.metrics = {} if unvalidated else saved.state["metrics"]
        self.best = best_record(saved.state)
        if self._validates_otherwise(saved.state):
            self.best = None  # its figure does not compare with those to come
        return changes

    def _validates_otherwise(self, state: Mapping[str, Any]) -> bool:
        """Whether a saved state was validated on other images or codes than this run will be."""
        before, identity = state["train"], state.get("identity", {})
        items = self.config.validate_items
        return before.get("validate_items", items) != items or any(
            identity.get(name, value) != value
            for name, value in self.identity.items()
            if name.startswith("held_out")
        )

    def compared(
        self, path: Path, *, accept_changed: bool = False
    ) -> tuple[TrainingState, list[str]]:
        """The checkpoint of an earlier part of the run, and what has changed since; this run stays
        as it is.

        Raises:
            OtherRunError: Unless that is accepted, it is of other data, versions or settings that
                must not change in a run; or it is past the last step.
            ValueError: It is of another model or optimiser.
        """
        model: Any = self.model
        share = (self.ranks.rank, self.ranks.count) if is_sharded(model) else (0, 1)
        saved = load_training(path, share=share)
        if type(saved.model) is not class_of(model):
            raise ValueError(
                f"{path} holds a {type(saved.model).__name__}, this run trains a "
                f"{class_of(model).__name__}. Name another output folder."
            )
        if saved.model.config != model.config:
            there, here = asdict(saved.model.config), asdict(model.config)
            differ = [f"{n} {there[n]}, not {here[n]}" for n in there if there[n] != here[n]]
            raise ValueError(
                f"{path} was made with {'; '.join(differ)}. Repeat the options with which "
                "the run was begun, its preset too, or name another output folder."
            )
        before, now = saved.state["train"], asdict(self.config)
        if before.get("optimizer", now["optimizer"]) != now["optimizer"]:
            raise ValueError(
                f"{path} was made with optimizer={before['optimizer']}, got "
                f"{now['optimizer']}, which cannot use its moments. Use the same, or name another "
                "output folder."
            )
        done = saved.state["step"]
        if done > self.config.steps:
            raise OtherRunError(
                f"expected steps={done} or more, the steps that {path} has done, got "
                f"{self.config.steps}.",
                "Raise it, or start again with overwrite.",
            )
        changes, remedy = self._other_order(saved.state), ""
        if changes:
            remedy = self._keeping_batch(_batch_of(saved.state))
        # Checkpoints of older versions have no identity to compare.
        changes += _changes(dict(saved.state.get("identity", {})), self.identity)
        if changes and not accept_changed:
            raise OtherRunError(
                f"{path} was made with {'; '.join(changes)}: continued like this, the run "
                "would not be the one that was begun.",
                f"Repeat the options with which it was begun, its preset too.{remedy} Or continue "
                "all the same with accept_changed, or start again with overwrite or in "
                "another output folder.",
            )
        self._check_moments(path, saved)
        if (saved.companion is None) != (self.companion is None):
            raise ValueError(
                f"{path} was made {'without' if saved.companion is None else 'with'} a "
                "discriminator or a class head. Continue it with the same settings, or name "
                "another output folder."
            )
        return saved, changes

    def _check_moments(self, path: Path, saved: TrainingState) -> None:
        """Raises ValueError unless a weight has all the tensors that the optimiser keeps of it, or
        none."""
        found = defaultdict[str, set[str]](set)
        for tensor in saved.optimizer:
            name, _, key = tensor.rpartition(".")
            found[name].add(key)
        kept = kept_moments(self.optimizer, self.config)
        for name, weight in self.model.named_parameters():
            if name in found and found[name] != (names := kept.get(weight, set())):
                there, kept_here = (" and ".join(sorted(keys)) for keys in (found[name], names))
                raise ValueError(
                    f"{path} holds {there} of {name}, but {self.config.optimizer} keeps "
                    f"{kept_here or 'nothing'}: the checkpoint is damaged. Name another output "
                    "folder."
                )

    def _other_order(self, state: Mapping[str, Any]) -> list[str]:
        """How the batch of a step and the seed, which fix the order of the data, differ from those
        of a saved state."""
        return _changes(
            {"global_batch": _batch_of(state), "seed": state["train"].get("seed", 0)},
            {"global_batch": self.cut.batch_size, "seed": self.config.seed},
        )

    def _keeping_batch(self, batch: int) -> str:
        """How to get steps of this batch with this number of processes; "" if that is the case
        already."""
        if batch == self.cut.batch_size:
            return ""
        config, count = self.config, self.ranks.count
        taken = f"{count} processes take" if count > 1 else "one process takes"
        said = (
            f" A step of the run has a batch of {batch}; {taken} batch_size={config.batch_size} x "
            f"accumulate={self.cut.accumulate} each, {self.cut.batch_size} in all."
        )
        times, rest = divmod(batch, config.batch_size * count)
        if rest or not times:
            return f"{said} Set global_batch={batch}, which any number of processes can share."
        return f"{said} Set accumulate={times}, or global_batch={batch} for any number of them."


def _batch_of(state: Mapping[str, Any]) -> int:
    """Items of a step in all processes. Older versions ran in one, and did not note it."""
    before = state["train"]
    batch: int = before.get("batch_size", 1) * before.get("accumulate", 1)
    return state.get("global_batch", batch)


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """How two parts of a run differ; hashes are shortened."""

    def shown(value: object) -> str:
        return f"{value:.12}" if isinstance(value, str) else f"{value}"

    found = []
    for name, value in before.items():
        if name not in now or now[name] == value:
            continue
        if isinstance(value, dict) and isinstance(now[name], dict):  # a group of settings
            found += [f"{name}.{change}" for change in _changes(value, now[name])]
        else:
            found.append(f"{name}={shown(value)}, got {shown(now[name])}")
    return found


def _as_moment(value: Tensor, weight: Tensor) -> Tensor:
    """An optimiser's tensor on the device and in the layout that an uninterrupted run would have.

    A fused optimiser reads counts of steps there too. In another memory format the update would use
    other loops and round differently.
    """
    if value.ndim == 0:
        return value.to(weight.device)
    moment = torch.empty_like(weight).detach()
    local(moment).copy_(value)
    return moment


def versions() -> dict[str, str]:
    """Versions of this package and of torch (without its build): others may round differently."""
    return {
        "vqvae2_fast": vqvae2_fast.__version__,
        "torch": torch.__version__.partition("+")[0],
    }
