"""A replica of Ray Serve, without Ray: what it is made of."""

import pytest
from diffseg.engines.errors import ClusterError
from diffseg.scale.serve import TOKEN, Replica, ServeOptions, app, make_replica

for package in ("fastapi", "cachetools", "prometheus_client", "structlog"):
    pytest.importorskip(package, reason="needs the extra 'serve'")


def test_ids_of_kept_attention_begin_with_the_replica(model, double, photo):
    service = make_replica(ServeOptions(model=model, no_token=True), "x7k2").app.state.service
    assert service.store.add(double(photo, keep_attention=True)).startswith("x7k2.")
    assert service.segmenter.batch == service.segmenter.bundle.manifest.max_batch


def test_without_a_token_it_does_not_start(model, monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)
    with pytest.raises(ClusterError, match="no token is set"):
        make_replica(ServeOptions(model=model), "x")
    with pytest.raises(ClusterError, match="cannot be read"):
        make_replica(ServeOptions(model=model, token_file="/nowhere"), "x")  # noqa: S106
    monkeypatch.setenv(TOKEN, "secret")
    assert make_replica(ServeOptions(model=model), "x").app.state.service.token == "secret"  # noqa: S105


def test_a_replica_whose_worker_has_ended_is_not_healthy(model):
    replica = Replica()
    replica.app = make_replica(ServeOptions(model=model, no_token=True), "x")
    replica.check_health()
    service = replica.app.app.state.service
    service.batcher.start()
    service.close(30)
    with pytest.raises(RuntimeError):
        replica.check_health()


def test_unknown_arguments_are_named():
    with pytest.raises(ClusterError, match="unknown argument 'modell'; the arguments are model, "):
        app({"modell": "tiny"})
