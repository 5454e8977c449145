"""A policy server for small models: OpenAI protocol, token ids and behaviour log-probabilities; it only samples."""
