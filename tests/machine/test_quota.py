"""A container's quota of processor time lowers the number of threads."""

from __future__ import annotations

import json

import pytest
import torch
from helpers.models import tiny_pipeline, tiny_prior

from vqvae2_fast.cli import main
from vqvae2_fast.codec import decode_images, encode_images
from vqvae2_fast.codec import engine as codec_engine
from vqvae2_fast.machine import quota
from vqvae2_fast.machine.quota import quota_of, threads_within_quota, within_quota
from vqvae2_fast.sampling import sample_codes, sample_images

UNIFIED = "31 23 0:28 {root} {folder} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
SPLIT = (
    "30 23 0:27 {root} {folder}-pids rw - cgroup cgroup rw,pids\n"
    "31 23 0:28 {root} {folder} rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n"
)


class System:
    """A process whose control groups are folders of a test."""

    def __init__(self, path, groups, mounts, root="/"):
        self.process, self.groups = path / "proc", path / "cgroup"
        self.process.mkdir()
        (self.process / "cgroup").write_text(groups)
        (self.process / "mountinfo").write_text(mounts.format(root=root, folder=self.groups))

    def write(self, group, **files):
        folder = self.groups / group
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(f"{text}\n")
        return self

    @property
    def quota(self):
        return quota_of(self.process)


def test_the_quota_of_a_container(tmp_path):
    system = System(tmp_path, "0::/\n", UNIFIED)
    assert system.write(".", cpu__max="150000 100000").quota == 1.5


def test_no_quota(tmp_path):
    assert System(tmp_path, "0::/\n", UNIFIED).write(".", cpu__max="max 100000").quota is None


def test_the_smallest_quota_of_nested_groups(tmp_path):
    system = System(tmp_path, "0::/user/session\n", UNIFIED)
    system.write("user", cpu__max="200000 100000")
    assert system.write("user/session", cpu__max="600000 100000").quota == 2.0


def test_a_quota_beside_the_process_is_none_of_its(tmp_path):
    system = System(tmp_path, "0::/user\n", UNIFIED)
    system.write("user", cpu__max="max 100000")
    assert system.write("other", cpu__max="100000 100000").quota is None


@pytest.mark.parametrize(("microseconds", "expected"), [(50000, 0.5), (-1, None)])
def test_the_quota_of_the_first_version(tmp_path, microseconds, expected):
    system = System(tmp_path, "3:pids:/a\n2:cpu,cpuacct:/job\n0::/\n", SPLIT)
    system.write("job", cpu__cfs_quota_us=microseconds, cpu__cfs_period_us=100000)
    assert system.quota == expected


@pytest.mark.parametrize("group", ["/user", "/"])
def test_a_mount_of_other_groups_is_none_of_the_process(tmp_path, group):
    system = System(tmp_path, f"0::{group}\n", UNIFIED, root="/other")
    assert system.write(".", cpu__max="100000 100000").quota is None


def test_a_namespace_that_begins_below_the_mount(tmp_path):
    system = System(tmp_path, "0::/\n", UNIFIED, root="/..")
    assert system.write(".", cpu__max="100000 100000").quota == 1.0


def test_a_container_sees_its_own_group_as_the_root(tmp_path):
    """Docker without a namespace of its own: the path is the host's, and so is the mount's root."""
    system = System(tmp_path, "2:cpu,cpuacct:/docker/1f\n", SPLIT, root="/docker/1f")
    assert system.write(".", cpu__cfs_quota_us=300000, cpu__cfs_period_us=100000).quota == 3.0


def test_without_a_mount_of_control_groups_there_is_no_quota(tmp_path):
    mount = "21 20 0:20 / /proc rw,nosuid - proc proc rw\n"
    system = System(tmp_path, "0::/\n", mount)
    assert system.write(".", cpu__max="100000 100000").quota is None


@pytest.mark.parametrize(
    ("groups", "mounts"), [("", "no mount\n"), ("cgroup", UNIFIED), ("0::/\n", "no mount\n")]
)
def test_text_of_another_form_has_no_quota(tmp_path, groups, mounts):
    assert System(tmp_path, groups, mounts).quota is None


def test_without_linux_there_is_no_quota(tmp_path):
    assert quota_of(tmp_path) is None


@pytest.mark.parametrize(
    ("threads", "limit", "expected"),
    [(2, None, 2), (2, 0.1, 1), (2, 1.0, 1), (2, 1.5, 1), (2, 1.75, 2), (2, 8.0, 2), (64, 2.0, 2)],
)
def test_threads_within_a_quota(monkeypatch, threads, limit, expected):
    monkeypatch.setattr(quota, "_quota_at", lambda _: limit)
    assert threads_within_quota(threads) == expected


@pytest.fixture
def quota_of_one(monkeypatch):
    """Two threads, and a quota of one processor."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(quota, "_quota_at", lambda _: 1.0)
    yield
    torch.set_num_threads(threads)


def test_pytorch_gets_its_threads_back(quota_of_one):
    with within_quota():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_a_number_of_threads_that_is_set_within_stays(quota_of_one):
    with within_quota():
        torch.set_num_threads(3)
    assert torch.get_num_threads() == 3


def test_a_draw_keeps_within_the_quota(quota_of_one):
    seen = []

    def progress(rows, height):
        seen.append(torch.get_num_threads())

    sample_codes(tiny_prior(), 1, engine="eager", progress=progress)
    assert set(seen) == {1}


def test_decoding_keeps_within_the_quota(quota_of_one):
    pipeline, seen = tiny_pipeline(), []
    for module in pipeline.vqvae.modules():
        module.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    sample_images(pipeline, 1, labels=[0])
    assert set(seen) == {1}


def test_the_codec_keeps_within_the_quota(quota_of_one, monkeypatch):
    seen, draw = [], codec_engine.draw_cpu

    def noted(*arguments):
        seen.append(torch.get_num_threads())
        return draw(*arguments)

    monkeypatch.setattr(codec_engine, "draw_cpu", noted)
    pipeline = tiny_pipeline()
    decode_images(pipeline, encode_images(pipeline, torch.zeros(1, 3, 16, 16)))
    assert set(seen) == {1}


def test_commands_keep_within_the_quota(quota_of_one, capsys):
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["threads"] == 1
