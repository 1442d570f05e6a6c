"""Avatars: the same images however they are drawn, their parts, and combinations held out."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("dicebear", reason="pip install 'vqvae2_fast[avatars]'")
pytest.importorskip("resvg_py", reason="pip install 'vqvae2_fast[avatars]'")

from vqvae2_fast.data import AVATAR_STYLES, load_avatars
from vqvae2_fast.data import avatars as module
from vqvae2_fast.data.avatars import avatar_options
from vqvae2_fast.data.sources import DataOptions, open_images

STYLES = ("pixelbot", "thumbs")  # those that load quickest


def small(split="all", size=16, **options):
    return load_avatars(split, size, **{"styles": STYLES, "count": 20, "num_workers": 0} | options)


def combination(images, index):
    first, second = images.held_out_parts[images.class_names[images.labels[index]]]
    return images.labels[index].item(), *(images.attributes[index][p] for p in (first, second))


def test_styles_are_classes():
    images = small()
    assert images.images.shape == (40, 3, 16, 16)
    assert images.class_names == STYLES
    assert images.labels.bincount().tolist() == [20, 20]
    assert images.names[:3] == ("pixelbot/0", "thumbs/0", "pixelbot/1")
    assert len(images.images.flatten(1).unique(dim=0)) == 40


def test_the_default_styles_are_in_the_public_domain():
    for style in AVATAR_STYLES:
        module._definition(style)


def test_a_part_changes_what_is_drawn():
    images = small(styles=("pixelbot",), count=60)
    by_parts = {}
    for image, parts in zip(images.images, images.attributes, strict=True):
        assert set(parts) == {"eyes", "mouth", "backgroundColor", "glowColor"}
        same = by_parts.setdefault(tuple(parts.items()), image)
        assert torch.equal(same, image)
    assert len(by_parts) > 30


def test_the_ground_has_the_colour_that_is_named():
    images = small(styles=("voxel-bot",))
    for image, parts in zip(images.images, images.attributes, strict=True):
        assert bytes(image[:, 0, 0].tolist()).hex() == parts["backgroundColor"].removeprefix("#")


def test_held_out_combinations_are_never_trained_on():
    every, train, held_out = (small(split, count=100) for split in ("all", "train", "held_out"))
    assert sorted(train.names + held_out.names) == sorted(every.names)
    trained = {combination(train, i) for i in range(len(train))}
    held = {combination(held_out, i) for i in range(len(held_out))}
    assert held and not held & trained
    assert {label for label, _, _ in held} == {0, 1}
    for label, first, second in held:  # but each part of them is, with another
        assert {(label, first), (label, second)} <= {
            (label, part) for label, *parts in trained for part in parts
        }


def test_every_value_keeps_a_partner_whatever_the_share():
    held = module._held_out("name", "abc", "vwxyz", 0.99)
    for first in "abc":
        assert any((first, second) not in held for second in "vwxyz")
    for second in "vwxyz":
        assert any((first, second) not in held for first in "abc")
    assert len(module._held_out("name", "abc", "vwxyz", 0.2)) == 3
    assert module._held_out("name", "abc", "vwxyz", 0.0) == frozenset()


def test_a_seed_gives_other_images_and_holds_out_others():
    first, second = small(count=100), small(count=100, seed=1)
    assert not torch.equal(first.images, second.images)
    held = [small("held_out", count=100, seed=seed) for seed in (0, 1)]
    sides = [{combination(images, i) for i in range(len(images))} for images in held]
    assert sides[0] != sides[1]


def test_processes_change_nothing():
    alone, together = small(count=70), small(count=70, num_workers=2)  # three batches
    assert torch.equal(alone.images, together.images)
    assert alone.attributes == together.attributes


def test_a_larger_set_begins_with_the_smaller():
    few, many = small(), small(styles=(*STYLES, "gaze"), count=30)
    of_many = dict(zip(many.names, many.images, strict=True))
    for name, image in zip(few.names, few.images, strict=True):
        assert torch.equal(of_many[name], image)


def test_drawn_images_are_kept(tmp_path, monkeypatch):
    first = small(cache=tmp_path)
    monkeypatch.setattr(module, "_rendered", None)  # nothing is drawn again
    again = small(cache=tmp_path)
    assert torch.equal(first.images, again.images)
    assert first.attributes == again.attributes
    assert first.held_out_parts == again.held_out_parts


@pytest.mark.parametrize("change", [{"seed": 1}, {"count": 21}, {"size": 17}, {"split": "train"}])
def test_other_settings_are_another_cache(tmp_path, change):
    small(cache=tmp_path)
    small(cache=tmp_path, **change)
    assert len(list(tmp_path.iterdir())) == 2


def test_another_version_of_the_generator_replaces_the_cache(tmp_path, monkeypatch):
    small(cache=tmp_path)
    (before,) = tmp_path.iterdir()
    monkeypatch.setattr(module.metadata, "version", lambda package: "99")
    small(cache=tmp_path)
    (after,) = tmp_path.iterdir()
    assert after != before


def test_an_interrupted_drawing_leaves_no_cache(tmp_path, monkeypatch):
    real, drawn = module._rendered, []

    def interrupted(svg, size):
        drawn.append(svg)
        if len(drawn) == 70:
            raise KeyboardInterrupt
        return real(svg, size)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_rendered", interrupted)
        with pytest.raises(KeyboardInterrupt):
            small(count=50, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(small(count=50, cache=tmp_path).images, small(count=50).images)


def test_a_damaged_cache_is_drawn_again(tmp_path):
    first = small(cache=tmp_path)
    (folder,) = tmp_path.iterdir()
    (folder / "cache.json").write_text(json.dumps({"kind": "image_cache"}))
    again = small(cache=tmp_path)
    assert torch.equal(first.images, again.images)
    assert first.attributes == again.attributes


def test_nothing_is_kept_unless_asked_for(tmp_path):
    small(cache=tmp_path, keep=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"styles": ("thumb",)}, "styles.*'?thumb.*Perhaps you meant thumbs"),
        ({"styles": ("adventurer",)}, "adventurer.*CC BY 4.0"),
        ({"styles": ("initials",)}, "initials draws letters"),
        ({"styles": ("disco",)}, "disco has fewer than two parts"),
        ({"styles": ()}, "expected styles to be"),
        ({"styles": ("thumbs", "thumbs")}, "expected styles to be one or more different"),
        ({"size": 15}, "expected size to be 16 to 512 pixels, got 15"),
        ({"size": 513}, "expected size to be 16 to 512 pixels, got 513"),
        ({"count": 0}, "expected count to be 1 or more images of each style, got 0"),
        ({"split": "test"}, "expected split to be one of"),
        ({"held_out_fraction": 1.0}, "held_out_fraction"),
        ({"split": "held_out", "count": 1}, "split held_out is empty"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, error):
    with pytest.raises(ValueError, match=error):
        small(**options)


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    def missing(package):
        raise module.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(module.metadata, "version", missing)
    with pytest.raises(RuntimeError, match=r"pip install 'vqvae2_fast\[avatars\]'"):
        small()


def test_settings_of_a_name():
    assert avatar_options("") == {}
    assert avatar_options("lorelei+thumbs,count=9,seed=3") == {
        "styles": ("lorelei", "thumbs"), "count": 9, "seed": 3
    }  # fmt: off
    assert avatar_options("lorelei,thumbs") == {"styles": ("lorelei", "thumbs")}
    for wrong in ("count=many", "count=-1", "size=3"):
        with pytest.raises(ValueError, match=wrong):
            avatar_options(wrong)


def test_as_a_source(tmp_path):
    options = DataOptions("avatars:pixelbot+thumbs,count=40,seed=2", cache=tmp_path)
    images = open_images(options, "held_out", 3, (16, 16))
    assert images.names == small("held_out", count=40, seed=2).names
    with pytest.raises(ValueError, match="1 channels of 28x28; preset=avatars64 fits"):
        open_images(options, "train", 1, (28, 28))
