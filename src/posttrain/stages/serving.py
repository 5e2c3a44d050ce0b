"""Servers that answer in a model's place."""

import os
from collections.abc import Callable
from typing import Any

from posttrain.errors import UserError
from posttrain.generation import Completion
from posttrain.generation.server import ServerEngine
from posttrain.recipe import Server


def server_engine(
    server: Server,
    tokenizer: Any,
    progress: Callable[[int], None] | None = None,
    drawn: Callable[[Completion], None] | None = None,
    *,
    retries: int = 4,
) -> ServerEngine:
    """The engine of a recipe's server. Raises `UserError` where the variable that should hold its key is not set."""
    variable = server.api_key_variable
    if variable is not None and not os.environ.get(variable):
        raise UserError(f"server.api_key_variable names '{variable}', but no such environment variable is set")
    return ServerEngine(
        server.url,
        server.model,
        tokenizer,
        api_key=os.environ[variable] if variable is not None else None,
        dialect=server.dialect,
        concurrency=server.concurrency,
        retries=retries,
        progress=progress,
        drawn=drawn,
    )


def check_server(server: Server, tokenizer: Any) -> str:
    """A note on who will answer. Raises `UserError` when the server cannot be reached or does not serve the model."""
    if not server.url.startswith(("http://", "https://")):
        raise UserError(f"server.url '{server.url}' is no address; it begins with http:// and mostly ends with /v1")
    dialect = server_engine(server, tokenizer, retries=1).check()
    return f"'{server.model}' at {server.url} answers (dialect {dialect}); likelihoods need the model here"
