import pytest
from diffseg.engines.files import atomic_file


def write_half(path):
    with atomic_file(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "masks.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        write_half(path)
    assert path.read_text() == "old"
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["masks.json"]


def test_a_link_is_replaced_and_its_target_untouched(tmp_path):
    """An output folder can contain links created by other users."""
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("of somebody else")
    link.symlink_to(target)
    with atomic_file(link) as temporary:
        temporary.write_text("ours")
    assert (target.read_text(), link.read_text(), link.is_symlink()) == ("of somebody else", "ours", False)
