"""`diffseg batch` from and to an S3 that moto plays, without Ray."""

import io

import pyarrow.parquet as pq
import pytest
from pyarrow.fs import S3FileSystem

from tests.integrations.ray.samples import check_rows, command, finish

moto = pytest.importorskip("moto.server")


@pytest.fixture
def store(monkeypatch):
    """A bucket, and the environment in which it is found."""
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    system = S3FileSystem(
        endpoint_override=f"{host}:{port}", scheme="http", access_key="test", secret_key="test",  # noqa: S106
        allow_bucket_creation=True, region="us-east-1",
    )  # fmt: skip
    system.create_dir("bucket")
    yield system
    server.stop()


def test_images_and_results_in_an_object_store(store, bundle, images, expected):
    keys = {}
    for path in images[:8]:
        with store.open_output_stream(f"bucket/photos/{path.name}") as stream:
            stream.write(path.read_bytes())
        keys[f"s3://bucket/photos/{path.name}"] = path
    words = ("--model", bundle, "--provider", "cpu", "--images-per-file", 4, "--local")
    assert "8 images, 1 with errors" in finish(command("batch", "s3://bucket/photos", "-o", "s3://bucket/out", *words))
    again = finish(command("batch", "s3://bucket/photos/*.jpg", "-o", "s3://bucket/out", *words))
    assert "left: 0" in again
    from pyarrow.fs import FileSelector

    found = [info.path for info in store.get_file_info(FileSelector("bucket/out", recursive=True))]
    rows = []
    for path in found:
        if path.endswith(".parquet"):
            with store.open_input_file(path) as stream:
                rows += pq.read_table(io.BytesIO(stream.read())).to_pylist()
    check_rows([row | {"key": str(keys[row["key"]])} for row in rows], {path: expected[path] for path in images[:8]})
