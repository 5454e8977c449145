"""Feedback: judgements of calls, by HTTP and from files, as log records like any other."""
