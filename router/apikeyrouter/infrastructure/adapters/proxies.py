"""Which HTTP proxy the environment asks for."""

import urllib.request

from yarl import URL

__all__ = ["proxy_for"]


def proxy_for(url: URL) -> URL | None:
    """The proxy for an address (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`); None: straight there."""
    host = url.host or ""
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(f"{host}:{url.port}") or urllib.request.proxy_bypass(host):
        return None
    return URL(proxy if "://" in proxy else f"http://{proxy}")
