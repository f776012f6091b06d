"""What every use case is given: settings, database, clock, search policy, and caches."""

from .context import Context as Context
