"""Packed weights in a file: drawn from as if packed in place, left aside if anything differs."""

import json
import os

import numpy as np
import pytest
import torch

import vqvae2_fast
from vqvae2_fast.ops import _native
from vqvae2_fast.sampling import calibrate, interface_of, plan_of, sample_codes
from vqvae2_fast.sampling.engines import cpu_file
from vqvae2_fast.sampling.engines.cpu import ENGINES, weights_of
from vqvae2_fast.sampling.engines.cpu_description import Description
from vqvae2_fast.sampling.engines.cpu_pack import described_plan
from vqvae2_fast.testing.priors import ODD_SIZES, prior_inputs, tiny_prior

pytestmark = [
    pytest.mark.skipif(_native.module is None, reason="this install has no compiled module"),
    pytest.mark.filterwarnings("error"),
]


def description_of(prior, engine="cpu"):
    plan = plan_of(prior, interface_of(prior))
    return described_plan(plan, weights_of(engine, prior, plan))


def draw(prior, engine="cpu"):
    condition = prior_inputs(prior, 2)["condition"]
    return sample_codes(prior, 2, condition=condition, engine=engine, seed=3)


@pytest.fixture
def saved(tmp_path):
    """A calibrated prior, which was also saved to this path."""
    prior = tiny_prior(**ODD_SIZES)
    inputs = prior_inputs(prior, 2)
    calibrate(prior, [(inputs["codes"], inputs["condition"], inputs["labels"])], margin=9)
    vqvae2_fast.save(prior, tmp_path / "prior")
    return prior, tmp_path / "prior"


@pytest.fixture
def only_mapped(monkeypatch):
    """Fails a test in which weights are packed from here on."""

    def refuse(self, module, threads):
        raise AssertionError("the weights were packed")

    return lambda: monkeypatch.setattr(Description, "packed", refuse)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_draw_from_the_file_has_the_codes_of_one_that_packs(saved, only_mapped, engine):
    prior, path = saved
    expected = draw(prior, engine)
    assert vqvae2_fast.pack(path, engine) == [path / f"packed-{engine}.safetensors"]
    loaded = vqvae2_fast.load(path)
    only_mapped()
    assert torch.equal(draw(loaded, engine), expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_file_has_the_words_that_the_library_packs(saved, engine):
    prior, path = saved
    (file,) = vqvae2_fast.pack(path, engine)
    words = np.fromfile(file, np.uint8)[4096:]
    assert bytes(description_of(prior, engine).packed(_native.module, 2).words()) == bytes(words)


def test_another_program_can_read_the_file(saved):
    from safetensors.numpy import load_file

    prior, path = saved
    (file,) = vqvae2_fast.pack(path)
    assert load_file(file)["words"].size == description_of(prior).num_words


def test_a_file_of_one_engine_does_not_serve_another(saved, only_mapped):
    _, path = saved
    vqvae2_fast.pack(path, "cpu_int8")
    loaded = vqvae2_fast.load(path)
    only_mapped()
    draw(loaded, "cpu_int8")
    with pytest.raises(AssertionError, match="packed"):
        draw(loaded, "cpu_bfloat16")


@pytest.mark.parametrize("name", ["blocks.0.layers.0.conv1.kernel.weight_g", "head.bias"])
def test_a_prior_whose_weights_have_changed_is_packed(saved, name):
    prior, path = saved
    vqvae2_fast.pack(path)
    loaded = vqvae2_fast.load(path)
    for changed in (prior, loaded):
        with torch.no_grad():
            changed.get_parameter(name).mul_(1.5)
    assert torch.equal(draw(loaded), draw(prior))


def test_saving_again_removes_the_file(saved):
    prior, path = saved
    (file,) = vqvae2_fast.pack(path)
    vqvae2_fast.save(prior, path)
    assert not file.exists()


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def cut_off(file):
    file.write_bytes(file.read_bytes()[:-64])


def of_a_newer_version(file):
    content = file.read_bytes()
    header = json.loads(content[8:4096])
    header["__metadata__"]["version"] = "2"
    file.write_bytes(content[:8] + json.dumps(header).encode().ljust(4088) + content[4096:])


def not_text(file):
    content = file.read_bytes()
    file.write_bytes(content[:8] + b"\xff" + content[9:])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_bit, "is damaged: its words"),
        (cut_off, r"has \d+ bytes, expected \d+"),
        (of_a_newer_version, "was written by another version"),
        (not_text, "is damaged or not JSON"),
        (lambda file: file.write_bytes(b""), "is damaged, or no file of packed weights"),
        (lambda file: file.write_bytes(b"PK\x03\x04" * 2000), "no file of packed weights"),
        (lambda file: (file.unlink(), file.mkdir()), "is a folder"),
    ],
)
def test_a_damaged_file_is_left_aside_with_a_warning(saved, damage, message):
    prior, path = saved
    (file,) = vqvae2_fast.pack(path)
    damage(file)
    loaded = vqvae2_fast.load(path)
    with pytest.warns(RuntimeWarning, match=message) as warned:
        codes = draw(loaded)
    assert str(file) in str(warned[0].message)
    assert "vqvae2-fast pack" in str(warned[0].message)
    assert torch.equal(codes, draw(prior))


def test_a_file_that_is_a_link_is_mapped(saved, only_mapped, tmp_path):
    _, path = saved
    (file,) = vqvae2_fast.pack(path)
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    loaded = vqvae2_fast.load(path)
    only_mapped()
    draw(loaded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda there, size: there.truncate(size - 64), "bytes, expected"),
        (lambda there, size: (there.seek(size - 8), there.write(b"12345678")), "is damaged"),
    ],
    ids=["cut_off", "overwritten"],
)
def test_a_file_that_is_changed_in_place_is_left_aside(saved, change, message):
    prior, path = saved
    (file,) = vqvae2_fast.pack(path)
    os.utime(file, (0, 0))  # the clock may not have moved on since it was written
    loaded = vqvae2_fast.load(path)
    draw(loaded)
    with file.open("rb+") as there:  # as `cp` and `rsync --inplace` write
        change(there, file.stat().st_size)
    with pytest.warns(RuntimeWarning, match=message):
        codes = draw(loaded)
    assert torch.equal(codes, draw(prior))


def test_a_file_that_cannot_be_mapped_is_left_aside_with_a_warning(saved, monkeypatch):
    prior, path = saved
    vqvae2_fast.pack(path)

    def refuse(path, **options):
        raise RuntimeError("unable to mmap 4096 bytes from file: No such device (19)")

    monkeypatch.setattr(torch, "from_file", refuse)
    with pytest.warns(RuntimeWarning, match=r"packed-cpu\.safetensors: unable to mmap .*\. The"):
        codes = draw(vqvae2_fast.load(path))
    assert torch.equal(codes, draw(prior))


def test_the_memory_of_a_file_is_not_written(saved):
    _, path = saved
    vqvae2_fast.pack(path)
    description = description_of(vqvae2_fast.load(path))
    file = path / "packed-cpu.safetensors"
    plan, _ = cpu_file.mapped_plan(file, description, _native.module, 1)
    with pytest.raises(RuntimeError, match="not its own"):
        plan.memory("head.weight", 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (lambda words: words[:-16], "expected [0-9]+ words, got"),
        (lambda words: np.concatenate([words, words])[1:][: words.size], "cache line"),
        (lambda words: np.repeat(words, 2)[::2], "not contiguous"),
    ],
)
def test_words_that_do_not_fit_are_refused(words, message):
    description = description_of(tiny_prior())
    packed = description.packed(_native.module, 1).words()
    aligned = np.frombuffer(packed, np.float32)
    with pytest.raises(ValueError, match=message):
        description.made(_native.module, 1, words(aligned))


CHANGES = {
    "num_heads": {"num_heads": 4},
    "mask": {"mask": "down"},
    "size": {"size": (6, 4)},
    "condition": {"condition_sizes": ((2, 3),)},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_configuration_has_another_digest(change):
    digests = {
        description_of(tiny_prior(num_classes=3, **values)).digest(_native.module, 1)
        for values in ({}, change)
    }
    assert len(digests) == 2


def test_every_parameter_counts_in_the_digest():
    prior = tiny_prior(num_classes=3, condition_sizes=((2, 3),), num_output_layers=1)
    before = description_of(prior).digest(_native.module, 1)
    for name, parameter in prior.named_parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.view(-1)[0] += 1
        assert description_of(prior).digest(_native.module, 1) != before, name
        with torch.no_grad():
            parameter.copy_(kept)
    assert description_of(prior).digest(_native.module, 1) == before


def test_the_digest_does_not_depend_on_the_number_of_threads():
    description = description_of(tiny_prior(channels=160, kernel_size=5))
    assert len({description.digest(_native.module, threads) for threads in (1, 2, 5)}) == 1


# If one of these changes, files of earlier versions no longer hold what this one would pack, or it
# does not find them: increase `cpu_file.VERSION`.
def test_version_1_packs_these_words(tmp_path):
    prior = tiny_prior(num_classes=3, condition_sizes=((2, 3),), num_output_layers=1)
    with torch.no_grad():
        for parameter in prior.parameters():
            count = parameter.numel()
            parameter.copy_(((torch.arange(count) * 37 % 101 - 50) / 64).view_as(parameter))
    hashes = {}
    for engine in ("cpu", "cpu_bfloat16", "cpu_int8"):
        file = tmp_path / engine
        cpu_file.write_packed(file, description_of(prior, engine), _native.module, 1)
        metadata = json.loads(file.read_bytes()[8:4096])["__metadata__"]
        hashes[engine] = metadata["packed_from"][:16], metadata["words_hash"]
    assert cpu_file.VERSION == "1"
    assert hashes == {
        "cpu": ("87aa66a36d71a6b3", "4752bb378534ec62"),
        "cpu_bfloat16": ("2608015d91a7c5e9", "bbfeffc386e23b5c"),
        "cpu_int8": ("5d8ebdc6c35a3938", "52d4652165f8220b"),
    }
