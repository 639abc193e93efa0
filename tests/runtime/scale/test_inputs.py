"""What the arguments of a batch name, and how their images are read."""

import io
import tarfile

import pytest
from diffseg.engines.errors import ClusterError, ImageError
from diffseg.scale.inputs import find_inputs
from diffseg.scale.read import read_unit
from diffseg.scale.units import Unit, container_unit


def test_folders_globs_lists_and_images(photos, tmp_path):
    everything = sorted(str(path) for path in photos.rglob("*.jpg"))
    assert find_inputs([str(photos)]).files == everything
    assert find_inputs([str(photos), str(photos / "0.jpg")]).files == everything
    assert find_inputs([str(photos / "more" / "*.jpg")]).files == sorted(map(str, (photos / "more").iterdir()))
    assert find_inputs([str(photos / "**" / "*.jpg")]).files == everything
    listed = tmp_path / "list.txt"
    listed.write_text("photos/0.jpg\n\ns3://bucket/x.jpg\nphotos/lost.jpg\n")
    assert find_inputs([str(listed)]).files == sorted(
        [str(photos / "0.jpg"), "s3://bucket/x.jpg", str(photos / "lost.jpg")]
    )


def test_the_folder_of_the_results_is_no_input(photos):
    inside = photos / "more"
    assert not [name for name in find_inputs([str(photos)], output=str(inside)).files if name.startswith(str(inside))]


@pytest.mark.parametrize("name", ["lost", "lost/*.jpg", "notes"])
def test_an_argument_that_names_nothing_is_an_error(name, tmp_path):
    (tmp_path / "notes").mkdir()
    with pytest.raises(ClusterError, match="no images, .tar or .parquet files found"):
        find_inputs([str(tmp_path / name)])


def test_files_are_read_in_order_and_errors_are_in_place(photos):
    items = (str(photos / "0.jpg"), str(photos / "lost.jpg"), str(photos / "more"), str(photos / "2.jpg"))
    found = dict(read_unit(Unit(0, "files", items)))
    assert tuple(found) == items
    assert found[items[0]] == (photos / "0.jpg").read_bytes()
    assert [str(found[item]) for item in items[1:3]] == ["no such file", "not a regular file"]
    assert isinstance(found[items[1]], ImageError)


def tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_samples_of_webdataset(tmp_path, jpeg):
    members = [
        ("a/x.jpg", jpeg()),
        ("a/x.json", b"{}"),
        ("a/x.mask.png", b"mask"),
        ("a/x.png", b"other"),
        ("y.JPG", jpeg(9)),
        ("z.txt", b""),
    ]
    tar(tmp_path / "0.tar", members)
    found = find_inputs([str(tmp_path)])
    assert (found.files, found.tars) == ([], [str(tmp_path / "0.tar")])
    items = list(read_unit(container_unit("tar", found.tars[0])))
    assert [key.rpartition("#")[2] for key, _ in items] == ["a/x", "a/x.png", "y"]
    assert items[2][1] == jpeg(9)


def test_a_damaged_tar_gives_what_is_before_the_damage(tmp_path, jpeg):
    tar(tmp_path / "0.tar", [("x.jpg", jpeg()), ("y.jpg", jpeg())])
    whole = 512 * (1 + -(-len(jpeg()) // 512))  # of the first image: its header and padded data
    (tmp_path / "0.tar").write_bytes((tmp_path / "0.tar").read_bytes()[: whole + 512 + 100])
    items = list(read_unit(container_unit("tar", str(tmp_path / "0.tar"))))
    assert items[0] == (f"{tmp_path / '0.tar'}#x", jpeg())
    assert "the tar file is damaged" in str(items[-1][1])


def test_a_lost_tar_ends_the_job(tmp_path):
    with pytest.raises(ClusterError, match="No such file"):
        list(read_unit(container_unit("tar", str(tmp_path / "lost.tar"))))


class TestParquet:
    @pytest.fixture
    def write(self, tmp_path):
        pa = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")

        def begin(columns, rows=2):
            parquet.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=rows)
            return str(tmp_path / "t.parquet")

        return begin

    def test_encoded_images(self, write, jpeg):
        data = [jpeg(i) for i in range(5)]
        name = write({"image": [{"bytes": item, "path": None} for item in data]})
        tables = find_inputs([name], per_unit=4).tables
        assert tables == [(name, (0, 1), "image"), (name, (2,), "image")]
        items = [item for table in tables for item in read_unit(container_unit("parquet", *table))]
        assert items == [(f"{name}#{i}", item) for i, item in enumerate(data)]

    def test_a_column_of_keys(self, write, jpeg):
        name = write({"bytes": [jpeg(), None], "uri": ["a", "b"]})
        (table,) = find_inputs([name]).tables
        items = list(read_unit(container_unit("parquet", *table)))
        assert items[0] == ("a", jpeg())
        assert (items[1][0], str(items[1][1])) == ("b", "an encoded image must be bytes, found nothing")

    def test_uris(self, write):
        name = write({"link": ["s3://b/x.jpg", None, "/y.jpg"]})
        assert find_inputs([name], column="link").files == ["/y.jpg", "s3://b/x.jpg"]
        with pytest.raises(ClusterError, match="no column with a usual name, found link; name"):
            find_inputs([name])
