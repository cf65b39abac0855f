"""The one exception tree. A user sees the sentence, never the traceback.

    EdgespecError             exit code 1: something failed
    ├── UsageError            exit code 2: the request itself cannot be carried out as written
    ├── CheckpointError       a model folder or file that cannot be read
    │   └── UnsupportedModel  a readable model with a part that the graph has no nodes for
    ├── BundleError           a bundle that is missing, damaged or of another schema
    ├── EngineError           a back end that cannot load or run a graph here
    └── LinkError             the other side cannot be reached, or refused
        └── ProtocolError     bytes that are not a message

Every message says what is wrong, where, and what to do about it, in one sentence.
"""

from __future__ import annotations


class EdgespecError(Exception):
    """Base of everything that edgespec raises on purpose."""

    exit_code = 1


class UsageError(EdgespecError):
    exit_code = 2


class CheckpointError(EdgespecError):
    pass


class UnsupportedModel(CheckpointError):
    pass


class BundleError(EdgespecError):
    pass


class EngineError(EdgespecError):
    pass


class LinkError(EdgespecError):
    """`code` is the protocol's error code where the other side sent one."""

    def __init__(self, message: str, *, code: str = "", retryable: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable


class ProtocolError(LinkError):
    pass
