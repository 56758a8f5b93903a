"""The HTTP service: data plane, management plane, operations. `apikeyrouter_proxy.main:app` is the ASGI application."""
