"""OpenAI-protocol gateway: serves the promoted version of a model under an unchanging name, and records every call."""
