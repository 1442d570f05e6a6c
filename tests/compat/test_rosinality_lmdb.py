"""The port's code store: rows as extract_code.py pickles them, and pickles that must not run."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import types
from collections import namedtuple

import lmdb
import numpy as np
import pytest
import torch

from vqvae2_fast.compat.rosinality import CodeRow, LMDBDataset, import_lmdb_codes


@pytest.fixture
def code_row(monkeypatch):
    """`dataset.CodeRow` as extract_code.py sees it: pickles name the module `dataset`."""
    module = types.ModuleType("dataset")
    module.CodeRow = namedtuple("CodeRow", ["top", "bottom", "filename"], module="dataset")
    monkeypatch.setitem(sys.modules, "dataset", module)
    return module.CodeRow


def write_store(path, values: list[bytes]) -> None:
    with lmdb.open(str(path), map_size=1 << 24) as env, env.begin(write=True) as transaction:
        for index, value in enumerate(values):
            transaction.put(str(index).encode(), value)
        transaction.put(b"length", str(len(values)).encode())


def maps(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 512, (4, 5)), generator.integers(0, 512, (8, 10))


def run_me(path: str) -> None:
    with open(path, "w"):
        pass


class Malicious:
    """Runs `call(*args)` when it is unpickled the ordinary way."""

    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_rows_are_read_in_every_protocol(tmp_path, code_row, protocol):
    rows = [code_row(*maps(seed), f"class{seed}/{seed}.png") for seed in range(3)]
    write_store(tmp_path / "codes", [pickle.dumps(row, protocol=protocol) for row in rows])
    dataset = LMDBDataset(tmp_path / "codes")
    assert len(dataset) == 3
    for (top, bottom, filename), row in zip(dataset, rows, strict=True):
        assert top.dtype == bottom.dtype == torch.int64
        assert np.array_equal(top, row.top)
        assert np.array_equal(bottom, row.bottom)
        assert filename == row.filename


def test_rows_of_numpy_1_are_read(tmp_path, code_row):
    value = pickle.dumps(code_row(*maps(), "a/b.png"), protocol=4)
    assert b"numpy._core.multiarray" in value
    # The string's opcode carries its length.
    old = value.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
    # The frame's length is that of the bytes after it.
    old = old[:3] + (len(old) - 11).to_bytes(8, "little") + old[11:]
    write_store(tmp_path / "codes", [old])
    assert np.array_equal(LMDBDataset(tmp_path / "codes")[0][0], maps()[0])


def test_fortran_order_and_byte_order_are_kept(tmp_path, code_row):
    top, bottom = maps()
    row = code_row(np.asfortranarray(top), bottom.astype(">i4"), "x.png")
    write_store(tmp_path / "codes", [pickle.dumps(row)])
    read_top, read_bottom, _ = LMDBDataset(tmp_path / "codes")[0]
    assert np.array_equal(read_top, top)
    assert np.array_equal(read_bottom, bottom)


@pytest.mark.parametrize("wrap", [False, True], ids=["value", "inside_a_row"])
@pytest.mark.parametrize("call", [run_me, os.mkdir, eval], ids=["own", "os", "eval"])
def test_malicious_pickle_is_refused_and_nothing_runs(tmp_path, code_row, call, wrap):
    trace = tmp_path / "trace"
    argument = f"__import__('os').mkdir({str(trace)!r})" if call is eval else str(trace)
    harm = Malicious(call, argument)
    value = pickle.dumps(code_row(harm, maps()[1], "x.png") if wrap else harm)
    pickle.loads(value)
    assert trace.exists()
    trace.rmdir() if trace.is_dir() else trace.unlink()

    write_store(tmp_path / "codes", [value])
    with pytest.raises(ValueError, match=r"record 0 .* refused, and nothing of it was run"):
        LMDBDataset(tmp_path / "codes")[0]
    assert not trace.exists()


def test_stub_classes_cannot_be_changed_by_a_pickle(tmp_path):
    # GLOBAL dataset.CodeRow; state (None, {'__len__': 7}); BUILD: sets an attribute of the class.
    value = b"cdataset\nCodeRow\n(N}X\x07\x00\x00\x00__len__K\x07stb."
    write_store(tmp_path / "codes", [value])
    with pytest.raises(ValueError, match="sets the attribute '__len__'"):
        LMDBDataset(tmp_path / "codes")[0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("x", "y", "z"), "not two arrays"),
        ((np.zeros((2, 2), int), np.zeros((4, 4), int), 7), "not a string"),
        ((np.zeros((2, 2)), np.zeros((4, 4), int), "f"), "of type f8, not one of i1"),
        ((np.zeros(4, int), np.zeros((4, 4), int), "f"), r"shape \(4,\)"),
        ((np.array([[{}]], object), np.zeros((4, 4), int), "f"), "of type O8, not one of i1"),
    ],
    ids=["strings", "number", "floats", "one_dimension", "objects"],
)
def test_rows_of_other_contents_are_refused(tmp_path, code_row, row, message):
    write_store(tmp_path / "codes", [pickle.dumps(code_row(*row))])
    with pytest.raises(ValueError, match=message):
        LMDBDataset(tmp_path / "codes")[0]


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_row_of_ours_is_read_by_the_port_alone_and_by_us(tmp_path, protocol):
    top, bottom = maps()
    value = pickle.dumps(CodeRow(top, bottom, "cat/1.png"), protocol=protocol)
    assert b"vqvae2_fast" not in value
    (tmp_path / "row").write_bytes(value)
    (tmp_path / "dataset.py").write_text(
        "from collections import namedtuple\n"
        "CodeRow = namedtuple('CodeRow', ['top', 'bottom', 'filename'])\n"
    )
    code = (
        "import pickle, sys; sys.modules['vqvae2_fast'] = None\n"
        "row = pickle.load(open('row', 'rb'))\n"
        "print(type(row), row.top.sum(), row.bottom.sum(), row.filename)"
    )
    run = [sys.executable, "-c", code]
    printed = subprocess.run(run, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert printed == f"<class 'dataset.CodeRow'> {top.sum()} {bottom.sum()} cat/1.png\n"
    write_store(tmp_path / "codes", [value])
    assert np.array_equal(LMDBDataset(tmp_path / "codes")[0][1], bottom)


def test_a_pickle_in_a_pickle_runs_no_more_than_a_row(tmp_path):
    trace = tmp_path / "trace"
    harm = pickle.dumps(Malicious(os.mkdir, str(trace)))
    twice = pickle.dumps(Malicious(pickle.loads, pickle.dumps(CodeRow(*maps(), "x.png"))))
    for value in (harm, pickle.dumps(Malicious(pickle.loads, harm)), twice):
        store = tmp_path / f"codes{len(value)}"
        write_store(store, [value])
        with pytest.raises(ValueError, match="refused, and nothing of it was run"):
            LMDBDataset(store)[0]
    assert not trace.exists()


def test_import_gives_our_store_with_labels_from_folders(tmp_path, code_row):
    names = ["dog/1.png", "cat/1.png", "dog/2.png"]
    rows = [code_row(*maps(seed), name) for seed, name in enumerate(names)]
    write_store(tmp_path / "codes", [pickle.dumps(row) for row in rows])
    dataset = import_lmdb_codes(tmp_path / "codes", tmp_path / "store", 512)
    assert dataset.complete
    assert dataset.class_names == ("cat", "dog")
    assert dataset.level_sizes == ((4, 5), (8, 10))
    (top, bottom), labels = dataset.batch(torch.arange(3))
    assert labels.tolist() == [1, 0, 1]
    assert np.array_equal(top, np.stack([row.top for row in rows]))
    assert np.array_equal(bottom, np.stack([row.bottom for row in rows]))


def test_import_refuses_maps_of_different_sizes(tmp_path, code_row):
    top, bottom = maps()
    rows = [code_row(top, bottom, "a.png"), code_row(top[:2], bottom, "b.png")]
    write_store(tmp_path / "codes", [pickle.dumps(row) for row in rows])
    with pytest.raises(ValueError, match="in record 1"):
        import_lmdb_codes(tmp_path / "codes", tmp_path / "store", 512)
    assert not (tmp_path / "store").exists()


def test_import_leaves_codes_that_are_there_alone(tmp_path, code_row):
    write_store(tmp_path / "codes", [pickle.dumps(code_row(*maps(), "x.png"))])
    import_lmdb_codes(tmp_path / "codes", tmp_path / "store", 512)
    with pytest.raises(ValueError, match="store holds codes already"):
        import_lmdb_codes(tmp_path / "codes", tmp_path / "store", 512)


def test_a_store_that_was_cut_is_refused(tmp_path, code_row):
    rows = [pickle.dumps(code_row(*maps(seed), "a/b.png")) for seed in range(40)]
    write_store(tmp_path / "codes", rows)
    data = tmp_path / "codes" / "data.mdb"
    content = data.read_bytes()
    for size in (3 * 4096, len(content) - 4096):
        data.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"data\.mdb is damaged: .* expected \d+; it was cut"):
            LMDBDataset(tmp_path / "codes")


@pytest.mark.parametrize("length", [b"2", b"9" * 30, b"-1", b"x"])
def test_a_length_that_is_not_one_is_refused(tmp_path, length):
    write_store(tmp_path / "codes", [b""])
    with lmdb.open(str(tmp_path / "codes")) as env, env.begin(write=True) as transaction:
        transaction.delete(b"0")
        transaction.put(b"length", length)
    with pytest.raises(ValueError, match="expected a key `length` with the number of records"):
        LMDBDataset(tmp_path / "codes")


def test_a_pickle_cannot_ask_for_a_long_memo(tmp_path):
    write_store(tmp_path / "codes", [b"\x80\x03Nr\xff\xff\xff\x3f."])
    with pytest.raises(ValueError, match="keeps an object under the number 1073741823"):
        LMDBDataset(tmp_path / "codes")[0]
