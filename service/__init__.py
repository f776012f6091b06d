"""The search service: records studies in SQL, decides what to try next, and says how the prediction fared."""

__version__ = "0.1.0"
