"""The operations on the pipeline: what a user does to it, and what is then computed from it."""

from __future__ import annotations

import copy
import faulthandler
import os
import pickle
import tempfile
from contextlib import nullcontext, suppress
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from world import (
    CLASSES,
    IMAGE,
    SETTINGS,
    SIZES,
    Interleaved,
    K,
    Refused,
    World,
    check_close,
    check_draw,
    context_of,
    operation,
)

import vqvae2_fast as vq2
from vqvae2_fast.codec import decode_codes, decode_stream, encode_codes, encode_stream
from vqvae2_fast.codec.codes import pipeline_hash
from vqvae2_fast.sampling import fill, sample_codes, sample_images, score_codes
from vqvae2_fast.sampling.calibration import calibrate
from vqvae2_fast.sampling.sampler import teacher_forced_logits

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    Undo = Callable[[], object]


def some_model(world: World, rng: Random, weights: tuple[int, ...] = (2, 5, 4)) -> int:
    number = rng.choices((0, 1, 2), weights)[0]
    world.say(("the VQ-VAE", "the top prior", "the bottom prior")[number])
    return number


def some_prior(world: World, rng: Random) -> int:
    return some_model(world, rng, (0, 3, 2))


def random_codes(number: int, batch: int = 2, lowest: int = 0) -> Tensor:
    return torch.randint(lowest, K, (batch, *SIZES[number]))


def codes_of_levels(batch: int = 2) -> list[Tensor]:
    return [random_codes(1, batch), random_codes(2, batch)]


def random_images(world: World) -> Tensor:
    return (torch.rand(2, *IMAGE) * 2 - 1).to(next(world.models[0].parameters()))


# A weight is written, or its memory is replaced.


def corner(weight: Tensor) -> Tensor:
    return weight[(slice(2),) * weight.ndim]


def write_through_numpy(weight: Tensor) -> None:
    if weight.dtype != torch.bfloat16:
        weight.detach().numpy().reshape(-1)[:1] += 0.5


WRITES: dict[str, Callable[[Tensor], object]] = {
    "through data": lambda weight: corner(weight.data).add_(0.5),
    "through numpy": write_through_numpy,
    "copied": lambda weight: weight.copy_(weight * (1 + 0.2 * torch.randn(weight.shape))),
    "rows rolled": lambda weight: weight.copy_(weight.roll(1, 0)),
    "signs flipped": lambda weight: corner(weight).neg_(),
    "denormal": lambda weight: corner(weight).fill_(1e-40),
    "memory moved": lambda weight: setattr(weight, "data", weight.data.clone()),
    "strides changed": lambda weight: setattr(
        weight, "data", weight.data.transpose(0, -1).contiguous().transpose(0, -1)
    ),
}


@operation(10)
@torch.no_grad()
def write_weight(world: World, rng: Random) -> None:
    name, weight = rng.choice(list(world.models[some_model(world, rng)].named_parameters()))
    how = rng.choice(list(WRITES))
    world.say(f"{name} {how}")
    WRITES[how](weight)


@operation(1.5)
def replace_parameter(world: World, rng: Random) -> None:
    """An equal parameter takes the place of one that is spoiled."""
    modules = world.models[some_model(world, rng)].modules()
    module = rng.choice([module for module in modules if list(module.parameters(False))])
    name, old = rng.choice(list(module.named_parameters(recurse=False)))
    setattr(module, name, nn.Parameter(old.detach().clone()))
    old.data.fill_(9.0)


# A model changes as a whole.


@operation(4)
def train(world: World, rng: Random) -> None:
    number = some_model(world, rng)
    model = world.models[number].train()

    def backward() -> None:
        if number:
            model.loss(random_codes(number), **context_of(number, 2)).backward()
        elif world.is_plain(0):
            images = random_images(world)
            model.loss(images, model(images)).backward()
            model.update_codebooks_()

    try:
        world.call(backward)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for weight in model.parameters():
            if weight.grad is not None:
                weight.data.sub_(weight.grad, alpha=0.05)
    finally:
        model.zero_grad()
        model.train(rng.random() < 0.5)


@operation(4)
def swap_averages(world: World, rng: Random) -> None:
    world.swap(some_model(world, rng))


@operation(2)
def load_weights(world: World, rng: Random) -> None:
    model = world.models[some_model(world, rng)]
    state = copy.deepcopy(model.state_dict())
    for value in state.values():
        if value.is_floating_point():
            value.mul_(1 + 0.2 * torch.randn(value.shape))
    model.load_state_dict(state, assign=rng.random() < 0.3)


@operation(2)
def cast(world: World, rng: Random) -> None:
    """Until alterations are undone, or at once back again."""
    number = some_model(world, rng)
    dtype = rng.choice((torch.float64, torch.bfloat16, torch.float16))
    world.say(str(dtype))
    world.models[number].to(dtype)
    world.alterations.append((number, world.models[number].float))
    if rng.random() < 0.5:
        world.alterations.pop()[1]()


def saved_and_loaded(model: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        vq2.save(model, f"{folder}/model")
        return vq2.load(f"{folder}/model")


@operation(4)
def renew(world: World, rng: Random) -> None:
    """Another object takes the place of a model, which is spoiled."""
    number = some_model(world, rng)
    copied = rng.choice((saved_and_loaded, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))))
    if world.is_plain(number):
        old = world.models[number]
        world.models[number] = world.call(copied, old)
        for weight in old.parameters():
            weight.data.fill_(9.0)


# A prior computes something else than its class says. Each of these returns how to undo it.


class Half(nn.Module):
    """A parametrization."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x


class LowRank(nn.Module):
    """A layer with an addition, as of LoRA. Its other attributes are the layer's."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return 1.5 * self.layer(*args, **kwargs)


def hooked(parent: nn.Module, name: str, layer: Any) -> Undo:
    return layer.register_forward_hook(lambda _module, _inputs, output: 0.5 * output).remove


def wrapped(parent: nn.Module, name: str, layer: Any) -> Undo:
    setattr(parent, name, LowRank(layer))
    return partial(setattr, parent, name, layer)


def subclassed(parent: nn.Module, name: str, layer: Any) -> Undo:
    own = type(layer)

    class Altered(own):  # type: ignore[misc, valid-type]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return 0.5 * super().forward(*args, **kwargs)

    layer.__class__ = Altered
    return partial(setattr, layer, "__class__", own)


def patched(parent: nn.Module, name: str, layer: Any) -> Undo:
    forward = layer.forward
    layer.forward = lambda *args, **kwargs: 0.5 * forward(*args, **kwargs)
    return partial(delattr, layer, "forward")


def parametrized(parent: nn.Module, name: str, layer: Any) -> Undo:
    module, weight = (layer, "bias") if "bias" in layer._parameters else (layer.kernel, "weight_v")
    parametrize.register_parametrization(module, weight, Half())
    return partial(parametrize.remove_parametrizations, module, weight, leave_parametrized=False)


@operation(3)
def alter_layer(world: World, rng: Random) -> None:
    number = some_prior(world, rng)
    if not world.is_plain(number):
        return
    model, kinds = world.models[number], ("SameConv2d", "CausalConv2d")
    paths = [path for path, layer in model.named_modules() if type(layer).__name__ in kinds]
    path = rng.choice((*paths, *["head"] * 3))  # the head is what most people wrap
    alter = rng.choice((hooked, wrapped, subclassed, patched, parametrized))
    world.say(f"{path} {alter.__name__}")
    parent, _, name = path.rpartition(".")
    undo = alter(model.get_submodule(parent), name, model.get_submodule(path))
    world.alterations.append((number, undo))


@operation(6)
def undo_alterations(world: World, rng: Random) -> None:
    while world.alterations:
        world.alterations.pop()[1]()


@operation(3)
def choose_setting(world: World, rng: Random) -> None:
    name = rng.choice(list(SETTINGS))
    world.settings[name] = rng.choice(SETTINGS[name][2])
    world.say(f"{name} {world.settings[name]}")


@operation(4)
def reset_settings(world: World, rng: Random) -> None:
    world.settings.clear()


# Draws.


def some_engine(world: World, rng: Random, number: int) -> tuple[str, Callable[..., Any]]:
    """An engine, and how it is called: it may refuse only what its plan does not know."""
    plain = world.is_plain(number)
    # From an altered prior engine `reference` draws under `auto`, which takes long.
    weights = (9, 9, 1, 0.7, 0.3) if plain else (2, 12, 1, 1, 0.1)
    engine = rng.choices(("auto", "cpu", "cpu_w8a8", "eager", "reference"), weights)[0]
    world.say(engine)
    always = engine in ("auto", "reference") or (plain and engine != "cpu_w8a8")
    return engine, world.must if always else world.call


def draw_arguments(rng: Random, number: int) -> dict[str, Any]:
    arguments = {**context_of(number, 2), "batch_size": 2, "seed": rng.randrange(2**32)}
    arguments |= {"temperature": rng.choice((1.0, 0.7, 0.0)), "first_sample": rng.choice((0, 5))}
    if rng.random() < 0.2:
        arguments["top_k"] = rng.randint(1, K)
    if rng.random() < 0.2:
        arguments["top_p"] = 0.8
    if number == 1 and rng.random() < 0.2:
        arguments["guidance_scale"] = 2.0
    if rng.random() < 0.2:
        arguments["known"] = random_codes(number, lowest=-1)
    return {**arguments, "return_log_prob": True}


@operation(14)
def draw(world: World, rng: Random, number: int | None = None, **others: Any) -> None:
    number = some_prior(world, rng) if number is None else number
    (engine, run), arguments = some_engine(world, rng, number), draw_arguments(rng, number)
    # The other engines call PyTorch's layers, whose results autocast rounds.
    compiled = engine == "cpu" and world.is_plain(number)
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, compiled)
    mode = rng.choice((nullcontext, nullcontext, torch.no_grad, torch.inference_mode, autocast))
    with mode():
        found = run(sample_codes, world.models[number], engine=engine, **arguments, **others)
    check_draw(world.models[number], engine, [x.clone() for x in found], arguments)


@operation(6)
def score(world: World, rng: Random) -> None:
    number = some_prior(world, rng)
    (engine, run), context = some_engine(world, rng, number), context_of(number, 2)
    codes, function = random_codes(number), rng.choice((score_codes, teacher_forced_logits))
    found = run(function, world.models[number], codes, **context, engine=engine)
    if engine != "cpu_w8a8":
        check_close(world.models[number], found, codes, context)


@operation(0.3)
def calibrate_prior(world: World, rng: Random) -> None:
    number = some_prior(world, rng)
    batch = (random_codes(number, 4), *context_of(number, 4).values())
    world.call(calibrate, world.models[number], [batch], margin=4.0)


@operation(0.5)
def draw_in_child(world: World, rng: Random) -> None:
    """In a forked process, by an engine that brings its own threads: those of PyTorch cannot go on
    there."""
    number = some_prior(world, rng)
    if not world.is_plain(number):
        return
    arguments, prior = draw_arguments(rng, number), world.models[number]
    child = os.fork()
    if not child:
        code = 1
        faulthandler.dump_traceback_later(20, exit=True)  # where it hangs
        try:
            check_draw(prior, "cpu", world.must(sample_codes, prior, **arguments), arguments)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0, "the draw of a forked child failed"


class Ended(Exception):
    """The caller of a draw has enough of it."""


@operation(1)
def end_draw(world: World, rng: Random) -> None:
    def progress(*_: int) -> None:
        raise Ended

    with suppress(Ended):
        draw(world, rng, progress=progress)
        raise AssertionError("the exception of progress did not end the draw")


@operation(0.5)
def draw_within_draw(world: World, rng: Random) -> None:
    def progress(row: int, _: int) -> None:
        if row == 1:
            with suppress(Refused):
                draw(world, rng)

    draw(world, rng, progress=progress)


# Weights change while something is computed. That must be of one state, or be refused, and what
# comes afterwards must be right.


class Change:
    """Of all models' weights, and back."""

    def __init__(self, world: World, rng: Random) -> None:
        self.world, self.loads = world, rng.random() < 0.5
        self.states = [copy.deepcopy(model.state_dict()) for model in world.models]
        self.refusal: Refused | None = None
        world.say("weights loaded" if self.loads else "averages swapped")

    def __call__(self, scale: float = 1.3) -> None:
        for number, (model, state) in enumerate(zip(self.world.models, self.states, strict=True)):
            if self.loads:
                scaled = {k: v * scale if v.is_floating_point() else v for k, v in state.items()}
                model.load_state_dict(scaled)
            else:
                self.world.swap(number)

    def __enter__(self) -> Change:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        """A refusal is raised once more by `finish`."""
        self.refusal = error if isinstance(error, Refused) else None
        return self.refusal is not None

    def finish(self, *checks: Callable[[World, Random], None], rng: Random) -> None:
        for _ in range(2):
            for check in checks:
                check(self.world, rng)
            self(1.0)
        if self.refusal is not None:
            raise self.refusal


@operation(3)
def change_within_draw(world: World, rng: Random) -> None:
    number = some_prior(world, rng)
    if rng.random() < 0.7:
        world.swap(number)  # so that the draw reads the weights
    prior = world.models[number]
    engine = rng.choice(("auto", "cpu", "eager")) if world.is_plain(number) else "cpu"
    arguments, change, before = (
        draw_arguments(rng, number),
        Change(world, rng),
        copy.deepcopy(prior),
    )
    within: Any = nullcontext()
    others: dict[str, Any] = {}
    if rng.random() < 0.3:
        others["progress"] = lambda row, _: change() if row == 1 else None
    else:
        within = Interleaved(change, rng.randint(1, rng.choice((30, 300))), "sampling")
    world.say(f"{'after a row' if others else f'at call {within.left}'} of {engine}")
    with change, within:
        found = world.call(sample_codes, prior, engine=engine, **arguments, **others)
        try:
            check_draw(before, engine, found, arguments)
        except AssertionError:
            check_draw(prior, engine, found, arguments)
    change.finish(partial(draw, number=number), rng=rng)


@operation(1)
def change_in_thread(world: World, rng: Random) -> None:
    """A thread draws while this one swaps averages, which it may see half swapped. So only what
    comes afterwards is judged."""
    number, errors = some_prior(world, rng), []
    arguments = draw_arguments(rng, number)

    def draws() -> None:
        for _ in range(3):
            try:
                world.call(sample_codes, world.models[number], **arguments)
            except Exception as error:
                errors.append(error)

    settings, world.settings = world.settings, {}  # they belong to all threads
    thread = Thread(target=draws)
    thread.start()
    for _ in range(20):
        world.swap(number)
    thread.join()
    world.settings = settings
    draw(world, rng, number)
    for error in errors:
        raise error


# Images and files.


@operation(6)
@torch.no_grad()
def compute_images(world: World, rng: Random) -> None:
    """What is given under the settings must be what is given without them for a copy."""
    images, codes, seed = random_images(world), codes_of_levels(), rng.randrange(99)
    mask, labels = torch.rand(IMAGE[1:]) < 0.3, {"labels": [0, 1]}
    functions: list[Callable[[Any], Any]] = [
        lambda pipeline: pipeline.vqvae.encode(images),
        lambda pipeline: pipeline.vqvae.decode(codes),
        lambda pipeline: sample_images(pipeline, 2, seed=seed, **labels),
        lambda pipeline: fill(pipeline, images, mask, candidates=1 + seed % 2, **labels),
    ]
    which = rng.randrange(4 if world.is_plain(1, 2) else 2)
    world.say(("encode", "decode", "sample_images", "fill")[which])
    found = world.call(functions[which], world.pipeline)
    expected = functions[which](copy.deepcopy(world.pipeline))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@operation(2)
def code_and_decode(world: World, rng: Random) -> None:
    codes, levels = codes_of_levels(), rng.choice((None, 1))
    labels = rng.choice((None, torch.randint(CLASSES, (2,))))
    run = world.must if world.is_plain(1, 2) else world.call
    data = run(encode_codes, world.pipeline, codes, labels=labels, levels=levels)
    decoded = run(decode_codes, world.pipeline, data)
    assert all(map(torch.equal, decoded[:levels], codes)), "the decoded codes are others"


@operation(1)
def change_within_coding(world: World, rng: Random) -> None:
    """While batches are encoded, or between them."""
    if not world.is_plain(1, 2):
        return
    batches = [(codes_of_levels(), None) for _ in range(3)]
    change, before = Change(world, rng), copy.deepcopy(world.pipeline)
    between, at = rng.random() < 0.5, rng.randint(1, 300)
    world.say("between batches" if between else f"at call {at}")

    def given() -> Any:
        for number, batch in enumerate(batches):
            if between and number == at % 3:
                change()
            yield batch

    segments = []
    with change, nullcontext() if between else Interleaved(change, at, "sampling", "codec"):
        segments = world.call(lambda: list(encode_stream(world.pipeline, given())))
    states = {pipeline_hash(pipeline): pipeline for pipeline in (before, world.pipeline)}
    for segment, (codes, _) in zip(segments, batches, strict=False):
        found = [pipeline for name, pipeline in states.items() if name in segment[:32]]
        assert found, "a segment names weights that the pipeline never had"
        assert all(map(torch.equal, decode_codes(found[0], segment), codes)), "other codes"
    change.finish(code_and_decode, draw, rng=rng)


@operation(0.5)
def change_within_decoding(world: World, rng: Random) -> None:
    """Between the parts of a file."""
    if not world.is_plain(1, 2):
        return
    codes = codes_of_levels(4)
    data, change = world.call(encode_codes, world.pipeline, codes), Change(world, rng)
    parts = world.call(decode_stream, world.pipeline, data, batch_size=1)
    try:
        for place in range(4):
            maps = world.call(next, parts)[0]
            expected = [level[place : place + 1] for level in codes]
            assert all(map(torch.equal, maps, expected)), "the decoded codes are others"
            if place == 1:
                change()
    finally:
        change(1.0)
