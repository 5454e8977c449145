"""Rows of the contract, and datasets on disk: written, compared, and what they lost."""
