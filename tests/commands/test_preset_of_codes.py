"""Which preset's settings `train-prior` takes if its command names none."""

from pathlib import Path

import pytest

from vqvae2_fast.commands.train_prior import TrainPrior
from vqvae2_fast.data.code_format import CodeLayout, Manifest, write_manifest
from vqvae2_fast.presets import preset


def _codes(
    folder: Path, num_embeddings: int, *level_sizes: tuple[int, int], classes: int = 0
) -> list[str]:
    """The arguments that name codes with such maps."""
    names = tuple(f"class {number}" for number in range(classes))
    (folder / "train").mkdir()
    write_manifest(folder / "train", Manifest(CodeLayout(num_embeddings, level_sizes), names))
    return ["--codes", str(folder)]


@pytest.mark.parametrize(
    ("num_embeddings", "options", "found"),
    [(128, [], "fashion28"), (128, ["--preset", "photos64"], "photos64"), (100, [], "emoji32")],
    ids=["the only one with such maps", "the one that is named", "the default"],
)
def test_a_preset_is_found(tmp_path, num_embeddings, options, found):
    codes = _codes(tmp_path, num_embeddings, (7, 7), (14, 14))
    assert TrainPrior.defaults([*codes, *options]).preset == found


@pytest.mark.parametrize(("classes", "found"), [(9, "emoji32"), (8, "avatars32"), (5, "emoji32")])
def test_of_presets_with_the_same_models_the_classes_choose(tmp_path, classes, found):
    codes = _codes(tmp_path, 256, (8, 8), (16, 16), classes=classes)
    assert TrainPrior.defaults(codes).preset == found


def test_several_presets_with_such_maps_and_different_models_are_named(tmp_path):
    codes = _codes(tmp_path, 512, (32, 32), (64, 64))
    with pytest.raises(ValueError, match="^--preset: .* photos256 and ffhq256"):
        TrainPrior.defaults(codes)


@pytest.mark.parametrize(
    ("preset_name", "level", "settings"),
    [
        ("ffhq1024", "middle", 1),
        ("ffhq1024", "middle1", 1),
        ("ffhq1024", "middle2", 1),
        ("emoji32", "middle2", 1),
        ("emoji32", "bottom", 1),
        ("emoji32", "top", 0),
    ],
)
def test_a_level_that_the_preset_lacks_has_settings_of_another(
    tmp_path, preset_name, level, settings
):
    codes = _codes(tmp_path, 100, (2, 2), (4, 4), (8, 8), (16, 16))
    command = TrainPrior.defaults([*codes, "--preset", preset_name, "--level", level])
    assert command.level == level
    assert command.model == preset(preset_name).priors[settings]


def test_an_option_that_the_codes_contradict_is_refused(codes, tmp_path, run):
    code, _, error = run(
        f"train-prior --codes {codes} --out {tmp_path / 'run'} --model.num-embeddings 7 --dry-run"
    )
    assert code == 2
    assert "--model.num-embeddings: expected 16, which follows from --codes" in error
