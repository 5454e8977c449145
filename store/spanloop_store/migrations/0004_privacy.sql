-- Who did what, and what must not come back. Both are append-only and never expire.

CREATE TABLE IF NOT EXISTS audit
(
    `time` DateTime64(9) DEFAULT now64(9),
    `who` String COMMENT 'USER@HOST of a command; for requests: the user and the address that it came from',
    `action` LowCardinality(String) COMMENT 'erase, backup, restore, build, query, pause, resume; promotions has the moves of aliases',
    `subject` String COMMENT 'what it was done to; of a statement its first 300 characters without the values in it',
    `details` String COMMENT 'JSON object'
)
ENGINE = MergeTree
ORDER BY time
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS erasures
(
    `time` DateTime64(9) DEFAULT now64(9),
    `kind` LowCardinality(String) COMMENT 'trace, session or user; response: a model answer of theirs, whose copy may lie in another trace',
    `id` String,
    `request` String COMMENT 'KIND:ID that was asked for, of which this one is a part',
    `first` DateTime64(9) COMMENT 'spans and log records that began before this are not meant',
    `last` DateTime64(9) COMMENT 'nor are those that began after this: a session or user may come back',
    `who` String
)
ENGINE = MergeTree
ORDER BY (kind, id, time)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
