"""The SDK: ``from service.client import Client``. Imports neither torch nor ray nor FastAPI."""

from .client import Client as Client
