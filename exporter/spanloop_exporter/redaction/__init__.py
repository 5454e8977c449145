"""Finds secrets and personal data in spans and log records, and puts pseudonyms of the same length in their place.

`setup.redactor_for` makes what everything uses, by what `settings.read_redaction` reads: `otlp.redact_request` for export requests, `Redactor.redact_text` for single
texts. Importing this package loads nothing: an agent without redaction does not pay for it.
"""
