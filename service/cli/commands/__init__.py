"""The commands of ``cdka``, a module for each noun. None imports torch, ray or FastAPI."""
