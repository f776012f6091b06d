"""All SQL: engine, tables and repositories. Repositories return domain records; nothing here decides."""
