"""From an ended span to its target through a spool on disk.

In the order that a span takes: `processor` (its end) → `exporter` → `encoding` (bytes) → `spool`, `runs`, `bounds` (the disk; `memory`
where there is none) → `shipping`, `batches`, `merging` (a thread that sends) → `targets`. `pipeline` holds it together in one
process, `settings` reads the variables.
"""
