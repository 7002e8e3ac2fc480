"""States on disk: bit for bit what they were, and refused where they are not what they should be."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from states import Config, Inner, Model, Outer, made, same

from memseq import state as verbs
from memseq.contract import empty
from memseq.errors import StateError
from memseq.state import (
    leaf_names,
    load_state,
    map_state,
    read_state,
    save_state,
    tensors,
)


@given(rows=st.integers(1, 4), seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_what_was_saved_is_loaded_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, rows: int, seed: int) -> None:
    path = tmp_path_factory.mktemp("states") / "a.state"
    state = made(rows, seed=seed)
    save_state(state, path, model=Model())
    back = load_state(path, Model())
    assert same(back, state)
    assert isinstance(back, Outer)
    assert all(t.data_ptr() % 16 == 0 for t in tensors(back)), "unaligned tensors are rounded otherwise by the kernels that read them"


def test_expanded_and_graph_bearing_leaves_are_saved_as_numbers(tmp_path: Path) -> None:
    class One:
        def init_state(self, rows: int) -> Inner:
            return Inner(torch.zeros(rows, 2, 3), torch.zeros(rows, dtype=torch.int64))

    M = empty(torch.zeros(()), 2, 2, 3, fill=7.0)
    seen = torch.zeros(2, 2, dtype=torch.int64)[:, 0]
    save_state(Inner(M, seen), tmp_path / "a")
    assert torch.equal(load_state(tmp_path / "a", One()).M, M)
    grown = torch.ones(2, 2, 3, requires_grad=True) * 3
    save_state(Inner(grown, seen), tmp_path / "a")
    assert torch.equal(load_state(tmp_path / "a", One()).M, grown)
    assert not load_state(tmp_path / "a", One()).M.requires_grad


def test_metadata_comes_back_as_it_went(tmp_path: Path) -> None:
    given_ = {"seen": 12, "title": "café", "tags": ["a", 1.5, None], "nested": {"a": True}}
    save_state(made(1), tmp_path / "a", model=Model(), **given_)
    assert read_state(tmp_path / "a", Model())[1] == given_
    save_state(made(1), tmp_path / "b")
    assert read_state(tmp_path / "b", Model())[1] == {}


def test_the_state_of_a_memory_without_one_is_saved_too(tmp_path: Path) -> None:
    class Stateless:
        config = Config()

        def init_state(self, rows: int) -> tuple[()]:
            return ()

    save_state((), tmp_path / "a", model=Stateless())
    assert load_state(tmp_path / "a", Stateless()) == ()


def test_a_store_that_grew_is_loaded_at_its_length(tmp_path: Path) -> None:
    class Growing:
        bounded = False

        def init_state(self, rows: int) -> Inner:
            return Inner(torch.zeros(rows, 0, 3), torch.zeros(rows, dtype=torch.int64))

    state = Inner(torch.randn(2, 5, 3), torch.tensor([5, 4]))
    save_state(state, tmp_path / "a")
    assert same(load_state(tmp_path / "a", Growing()), state)


def test_a_state_may_be_saved_by_name_of_a_string(tmp_path: Path) -> None:
    save_state(made(1), str(tmp_path / "a"))
    assert same(load_state(str(tmp_path / "a"), Model()), made(1))


def saved(path: Path) -> bytes:
    save_state(made(2), path, model=Model())
    return path.read_bytes()


def truncate(path: Path) -> None:
    path.write_bytes(saved(path)[:-10])


def cut_the_header(path: Path) -> None:
    path.write_bytes(saved(path)[:20])


def make_empty(path: Path) -> None:
    path.write_bytes(b"")


def write_text(path: Path) -> None:
    path.write_text("not a state at all, but a letter to a friend")


def make_a_folder(path: Path) -> None:
    path.mkdir()


def foreign(path: Path) -> None:
    save_file({"w": torch.zeros(3)}, path)


def foreign_format(path: Path) -> None:
    save_file({"w": torch.zeros(3)}, path, metadata={"format": "pt"})


def headless(path: Path) -> None:
    save_file({"w": torch.zeros(3)}, path, metadata={"format": verbs.FORMAT})


def broken_metadata(path: Path) -> None:
    leaves = dict(zip(leaf_names(made(2)), tensors(made(2)), strict=True))
    save_file(leaves, path, metadata={"format": verbs.FORMAT, "model": "", "metadata": "{"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: None, r"there is no state at .*a\.state; save one with save_state"),
        (truncate, "is not a readable state file .* it may be truncated"),
        (cut_the_header, "is not a readable state file .* it may be truncated"),
        (make_empty, "is not a readable state file .* it may be truncated"),
        (write_text, "is not a readable state file .* it may be truncated"),
        (make_a_folder, "is not a readable state file"),
        (foreign, "is a safetensors file but not a state of memseq .format None"),
        (foreign_format, "is a safetensors file but not a state of memseq .format 'pt'"),
        (headless, "its header is damaged: KeyError"),
        (broken_metadata, "its header is damaged: JSONDecodeError"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_file_that_holds_no_state_is_refused(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(tmp_path / "a.state")
    with pytest.raises(StateError, match=message):
        load_state(tmp_path / "a.state", Model())


def test_the_state_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    save_state(made(2), path, model=Model())
    with pytest.raises(StateError, match=r"is the state of another model .fingerprint [0-9a-f]{16}, this model [0-9a-f]{16}"):
        load_state(path, Model(config=Config(width=4)))
    save_state(made(2), path)  # without a fingerprint the leaves decide
    with pytest.raises(StateError, match=r"layers.0.M is torch.float32 of shape \(2, 2, 3\), this model keeps torch.float64"):
        load_state(path, Model(torch.float64))
    save_state(made(2).layers[0], path)
    with pytest.raises(StateError, match=r"it holds \['M', 'seen'\], this model keeps \['flag', 'layers.0.M'"):
        load_state(path, Model())
    wide = map_state(lambda t: t.repeat(1, 1, 2) if t.ndim == 3 else t, made(2))
    save_state(wide, path)
    with pytest.raises(StateError, match=r"shape \(2, 2, 6\), this model keeps torch.float32 of shape \(2, 2, 3\)"):
        load_state(path, Model())
    grown = map_state(lambda t: t.repeat(1, 2, 1) if t.ndim == 3 else t, made(2))
    save_state(grown, path)
    with pytest.raises(StateError, match=r"shape \(2, 4, 3\)"):
        load_state(path, Model())
    assert load_state(path, Model(bounded=False)).layers[0].M.shape == (2, 4, 3)


def test_leaves_that_disagree_on_the_number_of_streams_are_refused(tmp_path: Path) -> None:
    state = made(3)
    save_state(state._replace(flag=state.flag[:2]), tmp_path / "a")
    with pytest.raises(StateError, match=r"M is torch.float32 of shape \(3, 2, 3\), this model keeps torch.float32 of shape \(2, 2, 3\)"):
        load_state(tmp_path / "a", Model())


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.state"
    save_state(made(1, seed=1), path)
    whole = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        whole(self, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StateError, match=r"a\.state \(No space left on device\); the file that was there is as it was: free some space"):
        save_state(made(1, seed=2), path)
    with pytest.raises(StateError, match=r"b\.state \(No space left on device\); nothing was written"):
        save_state(made(1, seed=2), tmp_path / "b.state")
    monkeypatch.undo()
    assert same(load_state(path, Model()), made(1, seed=1))
    assert [p.name for p in tmp_path.iterdir()] == ["a.state"]


def test_a_state_that_has_no_place_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="No such file or directory"):
        save_state(made(1), tmp_path / "nowhere" / "a.state")


def test_metadata_that_is_no_json_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    save_state(made(1, seed=1), tmp_path / "a")
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_state(made(1, seed=2), tmp_path / "a", title=object())
    assert same(load_state(tmp_path / "a", Model()), made(1, seed=1))


def test_the_file_is_an_ordinary_safetensors_file(tmp_path: Path) -> None:
    from safetensors import safe_open

    save_state(made(1), tmp_path / "a", model=Model(), seen=3)
    with safe_open(tmp_path / "a", framework="pt") as file:
        assert sorted(file.keys()) == sorted(leaf_names(made(1)))
        assert file.metadata()["format"] == "memseq.state.1"
        assert json.loads(file.metadata()["metadata"]) == {"seen": 3}
