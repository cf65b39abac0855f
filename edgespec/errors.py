"""The exception tree. A user sees the sentence, never a traceback.

    EdgespecError             exit code 1: something failed
    ├── UsageError            exit code 2: the request is wrong as written, or names a missing path
    ├── CheckpointError       a model folder or file that cannot be read
    │   └── UnsupportedModel  a readable model with a part that the graph cannot express
    ├── BundleError           a bundle that is incomplete, damaged or of another schema
    ├── EngineError           a back end that cannot load or run a graph on this machine
    └── LinkError             the other side cannot be reached, or refused
        └── ProtocolError     bytes that are not a message

Every message is one sentence: what is wrong, where, and what to do about it.
"""

from __future__ import annotations


class EdgespecError(Exception):
    """Base of all errors that edgespec raises for its users."""

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
    """A failed link. `code` is the error code that the other side sent, if it sent one."""

    def __init__(self, message: str, *, code: str = "", retryable: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable


class ProtocolError(LinkError):
    pass
