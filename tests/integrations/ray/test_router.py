"""Which replica a request goes to, without a cluster."""

import asyncio
import pickle
from types import SimpleNamespace

import pytest
from diffseg.scale.router import KeptAttentionRouter, replica_of

REPLICAS = [SimpleNamespace(replica_id=SimpleNamespace(unique_id=name)) for name in ("a1", "b2", "c3")]


def chosen(path):
    sent = pickle.dumps(SimpleNamespace(asgi_scope={"path": path}))  # as Ray Serve's proxy does
    request = SimpleNamespace(args=[sent]) if path is not None else None
    router = object.__new__(KeptAttentionRouter)
    (found,) = asyncio.run(router.choose_replicas(REPLICAS, request))
    return [replica.replica_id.unique_id for replica in found]


@pytest.mark.parametrize("path", ["/v1/images/b2.Xy_-z/masks", "/v1/images/b2.k/attention", "/v1/images/b2.k"])
def test_kept_attention_has_one_replica(path):
    assert replica_of(path) == "b2"
    assert chosen(path) == ["b2"]


@pytest.mark.parametrize("path", [None, "/", "/v1/images", "/v1/segment", "/v1/images/old.k/masks", "/v1/images/b2"])
def test_other_requests_have_two_to_choose_from(path):
    assert len(set(chosen(path))) == 2


def test_the_application_has_the_router():
    from diffseg.scale.serve import app

    deployment = app({"model": "tiny", "no_token": True})._bound_deployment
    config = deployment._deployment_config
    assert deployment.name == "diffseg"
    assert config.request_router_config.get_request_router_class() is KeptAttentionRouter
    assert config.max_ongoing_requests == 64
