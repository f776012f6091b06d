"""All SQL: engine, tables and repositories. Repositories return domain records and make no decisions."""
