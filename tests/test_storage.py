"""States, pools and followers in files."""

import dataclasses

import jax
import numpy as np
import pytest
import texts
from calls import assert_states_equal, extend, int32, reference_of
from inspection import ARRAYS, assert_slot_equals

import jax_sa


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "state"
    jax_sa.save(path, extend(jax_sa.init(2, 8, seed=7), [[1, 2, 1], [3]]))
    return path


def rewrite(path, **changes):
    """Replaces arrays of the file; None takes one away."""
    with np.load(path) as file:
        arrays = dict(file) | changes
    with path.open("wb") as file:
        np.savez(file, **{name: array for name, array in arrays.items() if array is not None})


def load_error(path):
    with pytest.raises(ValueError, match="state: ") as error:
        jax_sa.load(path)
    message = str(error.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message


def test_a_saved_state_goes_on(tmp_path):
    text = texts.SMALL["source-code"]
    state = extend(jax_sa.init(2, len(text), seed=-4), [text[:200], text[:9]])
    before = jax.tree.map(np.array, state)
    jax_sa.save(str(tmp_path / "a"), state)
    loaded = jax_sa.load(str(tmp_path / "a"))
    assert_states_equal(jax.tree.map(np.array, loaded), before)
    assert jax_sa.validate(loaded).tolist() == [0, 0]
    loaded = extend(loaded, [text[200:], []])
    assert_slot_equals(loaded, 0, reference_of(text))


def test_a_file_has_each_array_by_name(path):
    with np.load(path) as file:
        assert set(file.files) == {"format_version", *ARRAYS}
        assert file["length"].tolist() == [3, 1] and file["edges"].ndim == 3


def test_saving_again_replaces_the_file(path):
    jax_sa.save(path, jax_sa.init(1, 3))
    assert jax_sa.load(path).max_seq_len == 3
    assert [file.name for file in path.parent.iterdir()] == ["state"]


@pytest.mark.parametrize("version", [0, 2, 4, -1, [3, 3], [], 3.5, "3"])
def test_another_version(path, version):
    rewrite(path, format_version=np.asarray(version))
    assert f"expected format version 3, got {version}" in load_error(path)


def test_other_arrays(path):
    rewrite(path, format_version=None)
    assert "expected format version 3, got None" in load_error(path)


def test_arrays_that_are_missing_or_too_many(path):
    rewrite(path, more=np.zeros(1))
    assert "expected the arrays of a State, got " in load_error(path)
    rewrite(path, more=None, seed=None)
    assert "expected the arrays of a State, got " in load_error(path)


@pytest.mark.parametrize("field", ARRAYS)
def test_arrays_that_do_not_belong_together(path, field):
    with np.load(path) as file:
        array = file[field]
    rewrite(path, **{field: np.zeros((5, *array.shape[1:]), np.int32)})
    assert "expected int32[" in load_error(path)
    rewrite(path, **{field: array.astype(np.int64)})
    assert "expected int32[" in load_error(path)
    rewrite(path, **{field: np.int32(3)})
    assert "expected int32[" in load_error(path)
    rewrite(path, **{field: np.array([{}], object)})
    assert "expected a file that save wrote" in load_error(path)


def test_broken_files(path):
    whole = path.read_bytes()
    for broken in (b"", b"x", whole[:100], whole[:-30], b"\x93NUMPY" + whole, whole[50:]):
        path.write_bytes(broken)
        assert "expected a file that save wrote" in load_error(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    assert "expected a file that save wrote, got a single array" in load_error(path)


def test_files_with_a_byte_changed(path):
    """Each is refused in one line or loads arrays that belong together."""
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        broken = bytearray(whole)
        broken[random.integers(len(whole))] ^= 1 << random.integers(8)
        path.write_bytes(broken)
        try:
            jax_sa.load(path)
        except ValueError as error:
            refused += 1
            assert str(error).startswith(str(path)) and "\n" not in str(error)
    assert refused > 100


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        jax_sa.load(tmp_path / "none")


def test_only_states_are_saved(tmp_path):
    with pytest.raises(TypeError, match="state: expected a jax_sa.State or ScanState, got dict"):
        jax_sa.save(tmp_path / "a", {})
    assert not list(tmp_path.iterdir())


@pytest.fixture
def pool():
    rows = int32([[1, 2, 1, 3], [3, 4, 0, 0]])
    pool = jax_sa.init_pool(16, num_groups=2)
    return jax_sa.insert(pool, rows, int32([4, 2]), groups=int32([1, 0]))


def test_a_saved_pool_goes_on(tmp_path, pool):
    jax_sa.save(tmp_path / "a", pool)
    loaded = jax_sa.load(tmp_path / "a")
    assert isinstance(loaded, jax_sa.Pool)
    more = int32([[5, 6]]), int32([2])
    expected = jax_sa.insert(pool, *more)
    jax.tree.map(np.testing.assert_array_equal, jax_sa.insert(loaded, *more), expected)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(jax_sa.Pool)])
def test_pools_whose_arrays_do_not_belong_together(tmp_path, pool, field):
    path = tmp_path / "state: pool"
    jax_sa.save(path, pool)
    array = np.asarray(getattr(pool, field))
    fewer = 4 if field == "ring" else 1  # rings of 13 to 16 tokens have tables of one size
    rewrite(path, **{field: array[..., fewer:]})
    assert "expected" in load_error(path)
    rewrite(path, **{field: array.astype(np.int64)})
    assert "expected int32[" in load_error(path)
    rewrite(path, **{field: None})
    assert "expected the arrays of a Pool, got " in load_error(path)


def test_another_version_of_a_pool(tmp_path, pool):
    path = tmp_path / "state: pool"
    jax_sa.save(path, pool)
    rewrite(path, pool_format_version=np.int32(2))
    assert "expected format version 1, got 2" in load_error(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": np.zeros((2, 6, 4), np.int32)}, "expected int32[G, V, 8], got int32[2, 6, 4]"),
        ({"tokens": np.zeros((2, 6, 8))}, "expected int32[G, V, 8], got float64[2, 6, 8]"),
        ({"tokens": np.zeros((0, 6, 8), np.int32)}, "expected a group at least, got none"),
        ({"tokens": np.zeros((2, 0, 8), np.int32)}, "vocabulary: expected an int in"),
        ({"tokens": None}, "expected the arrays of a Followers, got "),
        ({"more": np.zeros(1)}, "expected the arrays of a Followers, got "),
        ({"followers_format_version": np.int32(2)}, "expected format version 1, got 2"),
    ],
)
def test_broken_followers(tmp_path, change, message):
    path = tmp_path / "state: followers"
    jax_sa.save(path, jax_sa.init_followers(6, num_groups=2))
    rewrite(path, **change)
    assert message in load_error(path)
