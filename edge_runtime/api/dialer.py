"""Opening the client of the API, without loading the draft model for each try."""

from __future__ import annotations

from edge_runtime.client import Client
from edge_runtime.connection import drafter_for
from edge_runtime.observer import UNOBSERVED, Observer
from edgespec.config import EdgeSettings
from edgespec.manifest import Bundle
from edgespec.text import Codec
from engines.drafters.base import Drafter


class Dialer:
    """Connects to the cloud with a drafter that stays loaded until a connection takes it."""

    def __init__(
        self, bundle: Bundle, settings: EdgeSettings, observer: Observer = UNOBSERVED
    ) -> None:
        """Reads the tokenizer; the drafter is loaded by the first call."""
        self._bundle = bundle
        self._settings = settings
        self._observer = observer
        self._codec = Codec(bundle)
        self._drafter: Drafter | None = None

    def __call__(self) -> Client:
        """A new client; the one before must be closed. Raises as `Client` does.

        The drafter of a client that failed later is not used again, since it may be the reason.
        """
        if self._drafter is None:
            self._drafter = drafter_for(self._bundle, self._settings)
        client = Client(self._bundle, self._settings, self._observer, self._codec, self._drafter)
        self._drafter = None
        return client
