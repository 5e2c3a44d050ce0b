"""What all tests share."""

import os
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import scripted_server
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread_per_process() -> None:
    """Tests run side by side: one thread each is faster than two processes fighting for two cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the checkout; tests that want it skip where it is absent."""
    path = Path(__file__).parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("real data sets (../shared/data) are not beside this checkout")
    return path


@pytest.fixture
def scripted() -> Iterator[Callable[[Callable[[dict[str, Any]], Any]], tuple[str, list[dict[str, Any]]]]]:
    """Starts a server that answers each request with what a function makes of it; its address, and what it saw."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Callable[[dict[str, Any]], Any]) -> tuple[str, list[dict[str, Any]]]:
        server, seen = scripted_server.start(answer)
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/v1", seen

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
