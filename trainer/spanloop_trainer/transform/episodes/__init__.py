"""Which calls are one run, in which order, by which agent, of which task, and how it failed."""
