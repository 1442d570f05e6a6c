"""The port's models as native ones and back: the same tensors under other names.

Port to native and back gives equal tensors. A native model becomes a port one only where the port
has its layers; `from_native` says what it lacks.

With equal weights the two differ only in training: the native VQ-VAE moves its codebooks when
`update_codebooks_` is called, the port's in its forward; the native prior's dropout of the
conditioning and output stacks follows the configuration, the port's is 0.1.
"""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
import torch

from vqvae2_fast.compat.rosinality.checkpoint import StateDictError, load_checkpoint, origin_of
from vqvae2_fast.compat.rosinality.pixelsnail import PixelSNAIL
from vqvae2_fast.compat.rosinality.vqvae import VQVAE
from vqvae2_fast.files.printable import printable, short
from vqvae2_fast.models import pixelsnail as native_pixelsnail
from vqvae2_fast.models.code_checks import check_pixels
from vqvae2_fast.models.configs import PixelSNAILConfig, VQVAE2Config
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.ops._checks import check_tensor, dtype_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor, nn

__all__ = ["from_native", "load_pixelsnail", "load_vqvae", "to_native"]

_Port = TypeVar("_Port", VQVAE, PixelSNAIL)
_Model = TypeVar("_Model", bound="nn.Module")

_STRIDES = (4, 2, 2)  # of three levels; fewer have the first of them
# Parts of keys, the port's and ours, in the order in which they are replaced.
_PRIOR_NAMES = (
    (r"^horizontal\.conv\.", "stem.above."),
    (r"^vertical\.conv\.", "stem.left."),
    (r"^cond_resnet\.blocks\.0\.", "condition.stems.0."),
    (r"^cond_resnet\.blocks\.(\d+)\.", lambda m: f"condition.layers.{int(m[1]) - 1}."),
    (r"^out\.(\d+)\.conv\.", "head."),
    (r"^out\.", "output_layers."),
    (r"(blocks\.\d+)\.resblocks\.", r"\1.layers."),
    (r"(blocks\.\d+)\.key_resblock\.", r"\1.key."),
    (r"(blocks\.\d+)\.query_resblock\.", r"\1.query."),
    (r"(blocks\.\d+)\.out_resblock\.", r"\1.out."),
    (r"(blocks\.\d+)\.causal_attention\.", r"\1.attention."),
    (r"(blocks\.\d+)\.out\.conv\.(bias|weight)", r"\1.merge.\2"),
    (r"\.aux_conv\.", ".auxiliary."),
    (r"(\.conv)+\.(bias|weight_[gv])$", r".\2"),
    (r"\.(weight_[gv])$", r".kernel.\1"),
)


def load_vqvae(
    path: str | Path, *, rectified_skip: bool | None = None, images: Tensor | None = None
) -> VQVAE:
    """The port's VQVAE of a checkpoint file, in evaluation mode; sizes are read off its tensors.

    A file does not say whether it was trained before 2021-01-23, when the port's residual blocks
    added ReLU(x) instead of x. The wrong choice gives bad codes and images without an error.

    Args:
        rectified_skip: True for a model that was trained before that day, such as the published
            `vqvae_560.pt`; False for a later one.
        images: Instead of `rectified_skip`, some images like those that the model was trained on,
            float32 `[B, C, H, W]` in [-1, 1]. The choice that reconstructs them better is taken.

    Raises:
        ValueError: The file is refused (see `load_checkpoint`) or is not of this class; images that
            are none or not in [-1, 1]; or both arguments.
        TypeError: Another type or dtype than these.
    """
    if rectified_skip is not None:
        _check_flag("rectified_skip", rectified_skip)
    if images is not None:
        if rectified_skip is not None:
            raise ValueError("expected rectified_skip or images, got both.")
        _check_images(images)
    model = _loaded(VQVAE, path)
    if rectified_skip is None and images is None:
        warnings.warn(
            f"{path} may have been trained before 2021-01-23, when the port's residual "
            "blocks added ReLU(x). Pass rectified_skip=True if it was (the published vqvae_560.pt "
            "was), False if not, or images to compare both; False is taken now.",
            stacklevel=2,
        )
    if images is not None:
        errors = {flag: _reconstruction_error(model, images, flag) for flag in (False, True)}
        rectified_skip = errors[True] < errors[False]
    model.rectified_skip = bool(rectified_skip)
    return model


@torch.no_grad()
def _reconstruction_error(model: VQVAE, images: Tensor, rectified_skip: bool) -> float:
    model.rectified_skip = rectified_skip
    return float((model(images)[0] - images).square().mean())


def load_pixelsnail(path: str | Path, *, activated_skip: bool = False) -> PixelSNAIL:
    """The port's PixelSNAIL of a file, like `load_vqvae`; dropout is that of the file's `args`.

    Args:
        activated_skip: True for a prior that was trained before 2020-07-02; see `PixelSNAIL`.
    """
    _check_flag("activated_skip", activated_skip)
    model = _loaded(PixelSNAIL, path)
    model.activated_skip = activated_skip
    return model


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"expected {name} to be True or False, got {value!r}.")


def _check_images(images: Tensor) -> None:
    check_tensor("images", images)
    if images.dtype != torch.float32:
        raise TypeError(
            f"expected images float32, got {dtype_name(images.dtype)}. "
            "`to_float` makes such images of bytes."
        )
    if images.dim() != 4 or images.numel() == 0:
        raise ValueError(f"expected images [B, C, H, W], one or more, got {list(images.shape)}.")
    check_pixels(images)


def _loaded(kind: type[_Port], path: str | Path) -> _Port:
    checkpoint = load_checkpoint(path)
    source = printable(path)
    try:
        arguments = kind.arguments_of(checkpoint.state_dict)
    except (KeyError, IndexError, ValueError) as error:
        keys = list(checkpoint.state_dict)
        lacks = f"lacks {short(str(error.args[0]))} and " if type(error) is KeyError else ""
        origin = origin_of(keys, kind.__name__)
        likely = f" Likely source: {origin}." if origin else ""
        raise ValueError(
            f"{source} is not a {kind.__name__} of the port: it {lacks}has {len(keys)} tensors, "
            f"the first {short(', '.join(keys[:3]))}.{likely}"
        ) from error
    dropout = getattr(checkpoint.args, "dropout", None)
    if kind is PixelSNAIL and isinstance(dropout, (int, float)):
        arguments["dropout"] = dropout
    try:
        model = kind(**arguments)
        model.load_state_dict(checkpoint.state_dict)
    except (ValueError, RuntimeError, TypeError, ArithmeticError) as error:
        raise StateDictError(f"{source}: {error}") from error
    return model.eval()


@overload
def to_native(model: VQVAE, image_size: tuple[int, int] | None = None) -> VQVAE2: ...
@overload
def to_native(model: PixelSNAIL) -> native_pixelsnail.PixelSNAIL: ...
def to_native(
    model: VQVAE | PixelSNAIL, image_size: tuple[int, int] | None = None
) -> VQVAE2 | native_pixelsnail.PixelSNAIL:
    """The native model with the same weights, mode, device and dtype.

    Args:
        model: A model of the port.
        image_size: For a VQVAE, the image size of its configuration; by default 256×256 as in the
            port.

    Raises:
        TypeError: Not a model of the port.
        ValueError: A prior that takes a condition in its layers but has no conditioning stack, or
            whose map cannot be halved.
    """
    with torch.random.fork_rng(devices=[]):  # initialising the weights draws from the generator
        if isinstance(model, VQVAE):
            return _to_native_vqvae(model, image_size or (256, 256))
        if isinstance(model, PixelSNAIL):
            return _to_native_prior(model)
    raise TypeError(
        "expected a VQVAE or PixelSNAIL of vqvae2_fast.compat.rosinality, got "
        f"{type(model).__module__}.{type(model).__name__}."
    )


@overload
def from_native(model: VQVAE2) -> VQVAE: ...
@overload
def from_native(model: native_pixelsnail.PixelSNAIL) -> PixelSNAIL: ...
def from_native(model: VQVAE2 | native_pixelsnail.PixelSNAIL) -> VQVAE | PixelSNAIL:
    """The port's model with the same weights, mode, device and dtype.

    Raises:
        TypeError: Not a native model.
        ValueError: The port lacks something that the model has; all of it is listed.
    """
    with torch.random.fork_rng(devices=[]):
        if isinstance(model, VQVAE2):
            return _from_native_vqvae(model)
        if isinstance(model, native_pixelsnail.PixelSNAIL):
            return _from_native_prior(model)
    raise TypeError(
        "expected a VQVAE2 or PixelSNAIL of vqvae2_fast, got "
        f"{type(model).__module__}.{type(model).__name__}."
    )


def _to_native_vqvae(model: VQVAE, image_size: tuple[int, int]) -> VQVAE2:
    arguments = VQVAE.arguments_of(model.state_dict())
    config = VQVAE2Config(
        image_size=image_size,
        image_channels=arguments["in_channel"],
        strides=_STRIDES[: len(model.levels)],
        hidden_channels=arguments["channel"],
        residual_channels=arguments["n_res_channel"],
        num_residual_blocks=arguments["n_res_block"],
        num_embeddings=arguments["n_embed"],
        embedding_dim=arguments["embed_dim"],
        decay=model.quantize_b.decay,
        epsilon=model.quantize_b.eps,
        init="normal",
        ema_start="zero",
        restart=0.0,
        rectified_skip=model.rectified_skip,
    )
    return _filled(VQVAE2(config), model, _vqvae_name(model.levels))


def _from_native_vqvae(model: VQVAE2) -> VQVAE:
    config = model.config
    _refuse_lacking(
        {
            f"strides {config.strides}: it has (4, 2), here also (4,) and (4, 2, 2)": (
                config.strides != _STRIDES[: config.num_levels]
            ),
            f"decay {config.decay}: it has 0.99": config.decay != 0.99,
            f"epsilon {config.epsilon}: it has 1e-5": config.epsilon != 1e-5,
            f"quantizer {config.quantizer}: it has 'ema'": set(config.quantizer) != {"ema"},
        }
    )
    port = VQVAE(
        config.image_channels,
        config.hidden_channels,
        config.num_residual_blocks,
        config.residual_channels,
        config.embedding_dim,
        config.num_embeddings,
        rectified_skip=config.rectified_skip,
        n_level=config.num_levels,
    )
    return _filled(port, model, _vqvae_name(port.levels))


def _to_native_prior(model: PixelSNAIL) -> native_pixelsnail.PixelSNAIL:
    if not (len(model.blocks) and len(model.blocks[0].resblocks)):  # type: ignore[arg-type]
        raise ValueError(
            "expected a prior with blocks of gated layers, got n_block or n_res_block "
            "0. Draw from it as it is, with engine='reference'."
        )
    arguments = PixelSNAIL.arguments_of(model.state_dict())
    height, width = arguments["shape"]
    conditioned = hasattr(model, "cond_resnet")
    if model.activated_skip:
        raise ValueError(
            "expected a prior without activated_skip: native layers add x, not ELU(x). "
            "Draw from it as it is, with engine='reference'."
        )
    if arguments["cond_res_channel"] and not conditioned:
        raise ValueError(
            "the prior's layers take a condition (cond_res_channel="
            f"{arguments['cond_res_channel']}), but there is no conditioning stack to make it."
        )
    if conditioned and (height % 2 or width % 2):
        raise ValueError(
            f"expected a conditioned map of even height and width, got {height}×{width}."
        )
    dropout = model.blocks[0].resblocks[0].dropout.p  # type: ignore[union-attr, index]
    config = PixelSNAILConfig(
        size=(height, width),
        num_embeddings=arguments["n_class"],
        channels=arguments["channel"],
        residual_channels=arguments["res_channel"],
        num_blocks=arguments["n_block"],
        layers_per_block=arguments["n_res_block"],
        kernel_size=arguments["kernel_size"],
        mask="exclude",
        attention=arguments["attention"],
        num_heads=8,
        dropout=dropout,
        attention_dropout=dropout,
        attention_dropout_on="probabilities",
        num_output_layers=arguments["n_out_res_block"],
        condition_sizes=((height // 2, width // 2),) if conditioned else (),
        condition_channels=arguments["cond_res_channel"] or 1,
        num_condition_layers=arguments["n_cond_res_block"],
        condition_kernel_size=arguments.get("cond_res_kernel", 3),
    )
    return _filled(native_pixelsnail.PixelSNAIL(config), model, _prior_name)


def _from_native_prior(model: native_pixelsnail.PixelSNAIL) -> PixelSNAIL:
    config = model.config
    height, width = config.size
    halved = ((height // 2, width // 2),)
    _refuse_lacking(
        {
            f"mask {config.mask!r}: it has 'exclude'": config.mask != "exclude",
            "plain weights: its are weight-normalised": not config.weight_norm,
            f"{config.num_classes} classes: it has none": config.num_classes > 0,
            f"{config.num_heads} heads: it has 8": config.attention and config.num_heads != 8,
            f"condition sizes {config.condition_sizes}: it has one map of half the size": (
                config.condition_sizes not in ((), halved)
            ),
            "a conditioning stack without residual layers": (
                bool(config.condition_sizes) and config.num_condition_layers == 0
            ),
            f"an even kernel_size {config.kernel_size}": config.kernel_size % 2 == 0,
            f"{config.channels} channels: it has a multiple of 16": (
                config.attention and config.channels % 16 != 0
            ),
        }
    )
    conditioned = bool(config.condition_sizes)
    port = PixelSNAIL(
        [height, width],
        config.num_embeddings,
        config.channels,
        config.kernel_size,
        config.num_blocks,
        config.layers_per_block,
        config.residual_channels,
        attention=config.attention,
        dropout=config.dropout,
        n_cond_res_block=config.num_condition_layers if conditioned else 0,
        cond_res_channel=config.condition_channels if conditioned else 0,
        cond_res_kernel=config.condition_kernel_size,
        n_out_res_block=config.num_output_layers,
    )
    return _filled(port, model, _prior_name)


def _refuse_lacking(reasons: dict[str, bool]) -> None:
    lacking = [reason for reason, holds in reasons.items() if holds]
    if lacking:
        raise ValueError(f"the port has no such model: {'; '.join(lacking)}.")


def _renamed(key: str, names: Sequence[tuple[str, Any]]) -> str:
    for pattern, replacement in names:
        key = re.sub(pattern, replacement, key)
    return key


def _vqvae_name(levels: str) -> Callable[[str], str]:
    names = [(r"^dec\.", "decoder."), (r"\.blocks", ".layers")]
    for index, level in enumerate(levels):
        names += [
            (rf"^enc_{level}\.", f"encoders.{len(levels) - 1 - index}."),
            (rf"^dec_{level}\.", f"conditioners.{index}."),
            (rf"^upsample_{level}\.", f"upsamplers.{index}.0."),
            (rf"^quantize_conv_{level}\.", f"pre_quantize.{index}."),
            (rf"^quantize_{level}\.", f"quantizers.{index}."),
        ]
    names += [(r"\.conv\.", ".layers."), (r"\.embed$", ".codebook")]
    return lambda key: _renamed(key, names)


def _prior_name(key: str) -> str:
    return _renamed(key, _PRIOR_NAMES)


def _filled(target: _Model, source: nn.Module, native_name: Callable[[str], str]) -> _Model:
    """target with source's tensors; one of the two is the port's, `native_name` renames its keys.

    A linear layer is a 1×1 convolution there, and a codebook has codes as rows.
    """
    to_native = isinstance(source, (VQVAE, PixelSNAIL))
    port, native = (source, target) if to_native else (target, source)
    names = {native_name(key): key for key in port.state_dict()}
    own = native.state_dict()
    # The port has no counterpart of the codebook's step number and its flag.
    extra = {key for key in own if key.endswith((".steps", ".initialised"))}
    assert names.keys() == own.keys() - extra, sorted(names.keys() ^ own.keys())

    def fitted(tensor: Tensor, key: str, like: Tensor) -> Tensor:
        if re.search(r"quantize_[tmb]\.embed", key):
            return tensor.t()
        return tensor.reshape(like.shape)

    pairs = names.items() if to_native else ((key, name) for name, key in names.items())
    given, wanted = source.state_dict(), target.state_dict()
    for goal, origin in pairs:
        port_key = origin if to_native else goal
        wanted[goal] = fitted(given[origin], port_key, wanted[goal]).clone()
    reference = next(source.parameters())
    target = target.to(reference.device, reference.dtype)
    target.load_state_dict(wanted)
    return target.train(source.training)
