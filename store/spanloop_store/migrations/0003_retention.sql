-- What `rewards` needs so that its rows can go by whole partitions, as those of upstream's tables. The TTLs themselves are
-- set by spanloop_store.retention after this file: their days are configured (SPANLOOP_RETENTION_DAYS).

ALTER TABLE rewards MODIFY SETTING ttl_only_drop_parts = 1, non_replicated_deduplication_window = 10000;
