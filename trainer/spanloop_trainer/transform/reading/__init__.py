"""Out of the store and into one form: the queries, and the messages of every flavour as those of OpenAI's chat API."""
