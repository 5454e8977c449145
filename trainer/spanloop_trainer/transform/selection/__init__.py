"""Filters: conditions, decontamination, duplicates, the cap a task."""
