"""What every use case is handed: settings, the database, the clock, the search, and what is kept in memory."""

from .context import Context as Context
