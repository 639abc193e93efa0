from tests.runtime.serving.http.conftest import png, serve

__all__ = ["png", "serve"]
