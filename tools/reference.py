"""The reference of the Python API, as HTML, from the docstrings: `make docs`, or `python -m tools.reference FOLDER`."""

import sys
from pathlib import Path

import pdoc
import pdoc.render

MODULES = (
    "apikeyrouter",
    *(f"apikeyrouter.serving.{name}" for name in ("registration", "ways_in", "life", "blocking", "leases")),
    *(
        f"apikeyrouter.domain.models.{name}"
        for name in (
            "request_intent", "system_response", "cost_estimate", "routing_decision", "api_key", "quota_state",
            "budget", "policy", "failure", "state_summary", "trace", "system_error", "time_window",
        )
    ),
    *(f"apikeyrouter.domain.interfaces.{name}" for name in ("provider_adapter", "state_store", "observability")),
    *(
        f"apikeyrouter.domain.components.{name}"
        for name in (
            "key_manager", "quota_awareness_engine", "routing_engine", "scoring", "failure_handler", "cost_controller",
            "policy_engine",
        )
    ),
    *(
        f"apikeyrouter.infrastructure.adapters.{name}"
        for name in ("openai_adapter", "anthropic_adapter", "gemini_adapter", "azure_adapter", "generic_http_adapter")
    ),
    *(f"apikeyrouter.infrastructure.state_store.{name}" for name in ("memory_store", "redis_store")),
    "apikeyrouter.infrastructure.config.settings",
    *(f"apikeyrouter.integrations.{name}" for name in ("httpx", "httpx2")),
)  # fmt: skip
"""The import paths that are kept, the components that hang on a router, and the classes that a router is made of."""
FOLDER = Path("build/reference")


def build(folder: Path) -> Path:
    """Write the pages into a folder, and return the one to begin with."""
    pdoc.render.configure(docformat="google", show_source=False, footer_text="ApiKeyRouter")
    pdoc.pdoc(*MODULES, output_directory=folder)
    return folder / "index.html"


if __name__ == "__main__":
    print(build(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER))
