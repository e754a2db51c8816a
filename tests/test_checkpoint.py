"""Checkpoints are ordinary files with a digest, written whole or not at all; tests/long has them suffer."""

import errno
import io
import os
import zipfile
from pathlib import Path

import train
from conftest import saved
from support import files
from support.run import read_log

import pytest
import torch

STATE = {"step": 7, "weights": {"w": torch.arange(9000.0)}, "text": "a", "list": [1, 2.5, None]}


@pytest.fixture
def folder(tmp_path):
    """A run folder with two checkpoints: checkpoint.pt of step 7, previous.pt of step 6."""
    for step in (6, 7):
        files.save(STATE | {"step": step}, tmp_path / "checkpoint.pt", tmp_path / "previous.pt")
    return tmp_path


def same(one, other):
    return one["weights"]["w"].equal(other["weights"]["w"]) and one | {"weights": 0} == other | {"weights": 0}


def test_what_is_saved_is_what_is_read(folder):
    state, path = files.read(folder)
    assert state.pop("digest") == files.fingerprint(path)
    assert same(state, STATE) and path == folder / "checkpoint.pt"
    assert files.read(folder / "previous.pt")[0]["step"] == 6
    assert sorted(file.name for file in folder.iterdir()) == ["checkpoint.pt", "previous.pt"]


def test_a_checkpoint_is_an_ordinary_pytorch_file_that_carries_its_digest(folder):
    assert same(torch.load(folder / "checkpoint.pt", weights_only=True), STATE)
    with zipfile.ZipFile(folder / "checkpoint.pt") as archive:
        assert archive.comment.decode() == files.fingerprint(folder / "checkpoint.pt")
        assert archive.testzip() is None


def test_a_checkpoint_renamed_while_another_is_saved_is_not_called_damaged(folder, monkeypatch, capsys):
    (folder / "checkpoint.pt").unlink()
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: path.name == "checkpoint.pt" or exists(path))
    assert files.read(folder)[1] == folder / "previous.pt" and capsys.readouterr().err == ""


@pytest.mark.parametrize("content", [b"", b"PK", b"x" * 100_000])
def test_with_both_damaged_the_script_ends(folder, refusal, content):
    for name in ("checkpoint.pt", "previous.pt"):
        (folder / name).write_bytes(content)
    said = refusal(files.read, folder).splitlines()
    assert len(said) == 3 and said[2].startswith(f"{folder}: no intact checkpoint here")


def test_where_there_is_none_the_line_says_how_to_make_one(tmp_path, refusal):
    assert "python train.py" in refusal(files.read, tmp_path)
    assert "python train.py" in refusal(files.read, tmp_path / "nothing.pt")


class FullDisk(io.FileIO):
    """A file on a disk that has room for so many bytes."""

    room = 0

    def write(self, data):
        if self.tell() + len(data) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.mark.parametrize("room", [0, 100, 20_000, 36_000])
def test_a_full_disk_leaves_the_old_file(folder, refusal, monkeypatch, room):
    """One line with the path, how far it came and why; nothing unfinished stays."""
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    monkeypatch.setattr(FullDisk, "room", room)
    monkeypatch.setattr(
        files, "open", lambda path, mode: io.BufferedWriter(FullDisk(path, "w")), raising=False
    )
    said = refusal(files.save, STATE, folder / "checkpoint.pt", folder / "previous.pt")
    assert said.count("\n") == 1 and said.startswith(f"{folder / 'checkpoint.pt'}: not written after ")
    assert "bytes (No space left on device)" in said
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def no_writing(path, mode):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_a_disk_that_cannot_be_written_to_is_said(folder, refusal, monkeypatch):
    monkeypatch.setattr(files, "open", no_writing, raising=False)
    said = refusal(files.save, STATE, folder / "checkpoint.pt")
    assert said.startswith(f"{folder / 'checkpoint.pt'}: not written") and "Read-only file system" in said


@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_said(folder, refusal):
    folder.chmod(0o500)
    said = refusal(files.save, STATE, folder / "checkpoint.pt")
    assert said.startswith(f"{folder / 'checkpoint.pt'}: not written") and said.count("\n") == 1


def test_an_error_while_writing_text_leaves_the_old_file(tmp_path):
    """Whatever interrupts it, Ctrl-C included."""
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(KeyboardInterrupt), files.replacing(tmp_path / "a.json") as file:
        file.write("new")
        raise KeyboardInterrupt
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.json", "old")]


def test_a_log_line_cut_short_by_a_kill_is_left_out(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert read_log(tmp_path) == [{"step": 1}, {"step": 2}]


def test_two_processes_cannot_train_in_one_folder(workplace, tiny, refusal):
    with files.alone_in(Path("out/tiny")):
        said = refusal(train.main, tiny(max_steps=31))
    assert said == "out/tiny: another process is training there; wait until it ends, or set --run=NAME\n"
    train.main(tiny(max_steps=31))


def test_weights_alone_are_nothing_to_go_on_from(workplace, tiny, refusal):
    state = {name: x for name, x in saved().items() if name not in ("optimizer", "scaler")}
    files.save(state, Path("out/tiny/checkpoint.pt"))
    assert "out/tiny/checkpoint.pt: holds weights alone" in refusal(train.main, tiny(max_steps=31))
