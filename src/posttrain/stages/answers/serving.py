"""Servers that answer in a model's place."""

import os
from collections.abc import Callable
from typing import Any

from posttrain.errors import UserError
from posttrain.generation import Completion
from posttrain.generation.dialects import Dialect
from posttrain.generation.server import ServerEngine
from posttrain.recipe import Server


def server_engine(
    server: Server,
    tokenizer: Any,
    progress: Callable[[int], None] | None = None,
    drawn: Callable[[Completion], None] | None = None,
    *,
    retries: int = 4,
    timeout: float = 600.0,
    processed_logprobs: bool = False,
) -> ServerEngine:
    """The engine of a recipe's server. Raises `UserError` where the variable that should hold its key is not set."""
    return ServerEngine(
        server.url,
        server.model,
        tokenizer,
        api_key=api_key(server),
        dialect=server.dialect,
        concurrency=server.concurrency,
        timeout=timeout,
        retries=retries,
        processed_logprobs=processed_logprobs,
        progress=progress,
        drawn=drawn,
    )


def api_key(server: Server) -> str | None:
    """The key that a server wants. Raises `UserError` where the variable that should hold it is not set."""
    variable = server.api_key_variable
    if variable is not None and not os.environ.get(variable):
        raise UserError(f"server.api_key_variable names '{variable}', but no such environment variable is set")
    return None if variable is None else os.environ[variable]


def check_server(server: Server, tokenizer: Any) -> str:
    """A note on who will answer. Raises `UserError` when the server cannot be reached or does not serve the model."""
    dialect = dialect_of(server, tokenizer)
    return f"'{server.model}' at {server.url} answers (dialect {dialect}); likelihoods need the model here"


def dialect_of(server: Server, tokenizer: Any) -> Dialect:
    """What a server speaks, after one token. Raises `UserError` as `check_server` does."""
    if not server.url.startswith(("http://", "https://")):
        raise UserError(f"server.url '{server.url}' is no address; it begins with http:// and mostly ends with /v1")
    return server_engine(server, tokenizer, retries=1).check()
