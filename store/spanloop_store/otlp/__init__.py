"""OTLP bytes into the tables: check a request, read and write frames, insert segments. Importing this is free."""
