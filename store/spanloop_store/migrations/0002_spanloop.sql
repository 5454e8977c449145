-- Spanloop's own tables. All are append-only: a row is never updated, the newest row of a key counts.

CREATE TABLE IF NOT EXISTS rewards
(
    `id` String COMMENT 'idempotency key: one fact, one id, however often it is sent',
    `time` DateTime64(9) CODEC(Delta(8), ZSTD(1)) COMMENT 'when the judgement was made',
    `received` DateTime64(9) DEFAULT now64(9) COMMENT 'when the row was written',
    `trace_id` String COMMENT 'empty: not given',
    `span_id` String COMMENT 'empty: the whole trace or session',
    `response_id` String COMMENT 'gen_ai.response.id of the judged call; empty: not given',
    `session_id` String,
    `name` LowCardinality(String),
    `value` Nullable(Float64),
    `label` String,
    `explanation` String,
    `source` LowCardinality(String) COMMENT 'rule, event, feedback, verifier or judge',
    `evaluator` LowCardinality(String),
    `evaluator_version` LowCardinality(String),
    `attributes` Map(LowCardinality(String), String)
)
ENGINE = MergeTree
PARTITION BY toDate(time)
ORDER BY (trace_id, span_id, name, time);

CREATE TABLE IF NOT EXISTS resources
(
    `kind` LowCardinality(String) COMMENT 'model or prompt',
    `name` String,
    `version` UInt32 COMMENT 'from 1, per kind and name; written NAME@VERSION',
    `created` DateTime64(9) DEFAULT now64(9),
    `uri` String COMMENT 'model: folder or hub id; prompt: empty',
    `content` String COMMENT 'prompt: the text; model: empty',
    `content_hash` String,
    `parent` String COMMENT 'NAME@VERSION it was made from; empty: none',
    `dataset_id` String,
    `training_run_id` String,
    `metadata` String COMMENT 'JSON object'
)
ENGINE = MergeTree
ORDER BY (kind, name, version);

CREATE TABLE IF NOT EXISTS promotions
(
    `time` DateTime64(9) DEFAULT now64(9),
    `kind` LowCardinality(String),
    `name` String,
    `alias` LowCardinality(String) COMMENT 'production or candidate',
    `action` LowCardinality(String) COMMENT 'promote, reject, rollback or point',
    `version` UInt32,
    `previous_version` UInt32 COMMENT '0: none',
    `evaluation_id` String,
    `dataset_id` String,
    `who` String,
    `why` String
)
ENGINE = MergeTree
ORDER BY (kind, name, alias, time);

CREATE TABLE IF NOT EXISTS datasets
(
    `id` String COMMENT 'content hash',
    `created` DateTime64(9) DEFAULT now64(9),
    `uri` String,
    `parent` String,
    `episodes` UInt64,
    `transitions` UInt64,
    `manifest` String COMMENT 'JSON object'
)
ENGINE = MergeTree
ORDER BY (id, created);

CREATE TABLE IF NOT EXISTS training_runs
(
    `id` String,
    `started` DateTime64(9),
    `finished` DateTime64(9),
    `algorithm` LowCardinality(String),
    `dataset_id` String,
    `base` String COMMENT 'NAME@VERSION, folder or hub id that training started from',
    `uri` String COMMENT 'where the result lies',
    `status` LowCardinality(String) COMMENT 'ok or failed',
    `metrics` String COMMENT 'JSON object'
)
ENGINE = MergeTree
ORDER BY (id);

CREATE TABLE IF NOT EXISTS evaluations
(
    `id` String,
    `time` DateTime64(9) DEFAULT now64(9),
    `dataset_id` String,
    `baseline` String COMMENT 'NAME@VERSION',
    `candidate` String COMMENT 'NAME@VERSION',
    `tasks` UInt32 COMMENT 'pairs compared',
    `baseline_mean` Float64,
    `candidate_mean` Float64,
    `gain` Float64,
    `gain_ci95_low` Float64,
    `gain_ci95_high` Float64,
    `details` String COMMENT 'JSON object: the same per agent and per group'
)
ENGINE = MergeTree
ORDER BY (id);

CREATE TABLE IF NOT EXISTS ingest_segments
(
    `segment` String COMMENT 'name of the log segment, unique for ever; also its deduplication token',
    `collector` String,
    `signal` LowCardinality(String) COMMENT 'traces or logs',
    `decoder` LowCardinality(String) COMMENT 'engine, fallback or quarantine',
    `requests` UInt64,
    `rows` UInt64 COMMENT 'spans or log records',
    `bytes` UInt64,
    `inserted` DateTime64(9) DEFAULT now64(9)
)
ENGINE = MergeTree
ORDER BY (segment, decoder);
