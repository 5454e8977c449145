-- A store of schema version 2, as first made: no part is synced.
-- As the engine shows it (SHOW CREATE TABLE), with rows. Never change it: such stores exist.

CREATE TABLE datasets
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
ORDER BY (id, created)
SETTINGS index_granularity = 8192;

CREATE TABLE evaluations
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
ORDER BY (id)
SETTINGS index_granularity = 8192;

CREATE TABLE ingest_segments
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
ORDER BY (segment, decoder)
SETTINGS index_granularity = 8192;

CREATE TABLE otel_logs
(
    `Timestamp` DateTime64(9) CODEC(Delta(8), ZSTD(1)),
    `TimestampTime` DateTime DEFAULT toDateTime(Timestamp),
    `TraceId` String CODEC(ZSTD(1)),
    `SpanId` String CODEC(ZSTD(1)),
    `TraceFlags` UInt8,
    `SeverityText` LowCardinality(String) CODEC(ZSTD(1)),
    `SeverityNumber` UInt8,
    `ServiceName` LowCardinality(String) CODEC(ZSTD(1)),
    `Body` String CODEC(ZSTD(1)),
    `ResourceSchemaUrl` LowCardinality(String) CODEC(ZSTD(1)),
    `ResourceAttributes` Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    `ScopeSchemaUrl` LowCardinality(String) CODEC(ZSTD(1)),
    `ScopeName` String CODEC(ZSTD(1)),
    `ScopeVersion` LowCardinality(String) CODEC(ZSTD(1)),
    `ScopeAttributes` Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    `LogAttributes` Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    `EventName` String CODEC(ZSTD(1)),
    INDEX idx_trace_id TraceId TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX idx_res_attr_key mapKeys(ResourceAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_res_attr_value mapValues(ResourceAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_scope_attr_key mapKeys(ScopeAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_scope_attr_value mapValues(ScopeAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_log_attr_key mapKeys(LogAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_log_attr_value mapValues(LogAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_body Body TYPE tokenbf_v1(32768, 3, 0) GRANULARITY 8
)
ENGINE = MergeTree
PARTITION BY toDate(TimestampTime)
PRIMARY KEY (ServiceName, TimestampTime)
ORDER BY (ServiceName, TimestampTime, Timestamp)
SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1, non_replicated_deduplication_window = 10000;

CREATE TABLE otel_traces
(
    `Timestamp` DateTime64(9) CODEC(Delta(8), ZSTD(1)),
    `TraceId` String CODEC(ZSTD(1)),
    `SpanId` String CODEC(ZSTD(1)),
    `ParentSpanId` String CODEC(ZSTD(1)),
    `TraceState` String CODEC(ZSTD(1)),
    `SpanName` LowCardinality(String) CODEC(ZSTD(1)),
    `SpanKind` LowCardinality(String) CODEC(ZSTD(1)),
    `ServiceName` LowCardinality(String) CODEC(ZSTD(1)),
    `ResourceAttributes` Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    `ScopeName` String CODEC(ZSTD(1)),
    `ScopeVersion` String CODEC(ZSTD(1)),
    `SpanAttributes` Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    `Duration` UInt64 CODEC(ZSTD(1)),
    `StatusCode` LowCardinality(String) CODEC(ZSTD(1)),
    `StatusMessage` String CODEC(ZSTD(1)),
    `Events.Timestamp` Array(DateTime64(9)) CODEC(ZSTD(1)),
    `Events.Name` Array(LowCardinality(String)) CODEC(ZSTD(1)),
    `Events.Attributes` Array(Map(LowCardinality(String), String)) CODEC(ZSTD(1)),
    `Links.TraceId` Array(String) CODEC(ZSTD(1)),
    `Links.SpanId` Array(String) CODEC(ZSTD(1)),
    `Links.TraceState` Array(String) CODEC(ZSTD(1)),
    `Links.Attributes` Array(Map(LowCardinality(String), String)) CODEC(ZSTD(1)),
    INDEX idx_trace_id TraceId TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX idx_res_attr_key mapKeys(ResourceAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_res_attr_value mapValues(ResourceAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_span_attr_key mapKeys(SpanAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_span_attr_value mapValues(SpanAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_duration Duration TYPE minmax GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toDate(Timestamp)
ORDER BY (ServiceName, SpanName, toDateTime(Timestamp))
SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1, non_replicated_deduplication_window = 10000;

CREATE TABLE otel_traces_trace_id_ts
(
    `TraceId` String CODEC(ZSTD(1)),
    `Start` DateTime CODEC(Delta(4), ZSTD(1)),
    `End` DateTime CODEC(Delta(4), ZSTD(1)),
    INDEX idx_trace_id TraceId TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toDate(Start)
ORDER BY (TraceId, Start)
SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1, non_replicated_deduplication_window = 10000;

CREATE TABLE promotions
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
ORDER BY (kind, name, alias, time)
SETTINGS index_granularity = 8192;

CREATE TABLE resources
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
ORDER BY (kind, name, version)
SETTINGS index_granularity = 8192;

CREATE TABLE rewards
(
    `id` String COMMENT 'idempotency key: one fact, one id, however often it is sent',
    `time` DateTime64(9) COMMENT 'when the judgement was made' CODEC(Delta(8), ZSTD(1)),
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
ORDER BY (trace_id, span_id, name, time)
SETTINGS index_granularity = 8192;

CREATE TABLE spanloop_schema
(
    `version` UInt32,
    `name` String,
    `applied` DateTime64(3) DEFAULT now64(3)
)
ENGINE = MergeTree
ORDER BY version
SETTINGS index_granularity = 8192;

CREATE TABLE training_runs
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
ORDER BY (id)
SETTINGS index_granularity = 8192;

CREATE MATERIALIZED VIEW otel_traces_trace_id_ts_mv TO otel_traces_trace_id_ts
AS SELECT
    TraceId,
    min(Timestamp) AS Start,
    max(Timestamp) AS End
FROM otel_traces
WHERE TraceId != ''
GROUP BY TraceId;

INSERT INTO spanloop_schema (version, name) VALUES (1, 'upstream'), (2, 'spanloop');
INSERT INTO otel_traces (Timestamp, TraceId, SpanId, SpanName, ServiceName, SpanAttributes, `Events.Timestamp`, `Events.Name`, `Events.Attributes`) VALUES ('2026-03-01 10:00:00.000000001', 'trace-1', 'span-1', 'chat', 'agent', {'gen_ai.operation.name': 'chat'}, ['2026-03-01 10:00:01'], ['e'], [{'k': 'v'}]);
INSERT INTO otel_traces (Timestamp, TraceId, SpanId, SpanName, ServiceName) VALUES ('2026-03-02 10:00:00', 'trace-2', 'span-2', 'tool', 'agent');
INSERT INTO otel_logs (Timestamp, TraceId, SpanId, SeverityText, Body, EventName) VALUES ('2026-03-01 10:00:00', 'trace-1', 'span-1', 'INFO', 'kept', 'gen_ai.evaluation.result');
INSERT INTO rewards (id, time, trace_id, name, value, source) VALUES ('reward-1', '2026-03-01 10:00:00', 'trace-1', 'thumb', 1, 'feedback'), ('reward-2', '2026-03-01 10:00:00', 'trace-2', 'thumb', NULL, 'feedback');
INSERT INTO resources (kind, name, version, uri) VALUES ('model', 'calculator', 1, '/models/1');
INSERT INTO promotions (kind, name, alias, action, version) VALUES ('model', 'calculator', 'production', 'promote', 1);
INSERT INTO datasets (id, uri, episodes, transitions) VALUES ('dataset-1', '/data/1', 2, 3);
INSERT INTO training_runs (id, started, finished, algorithm, status) VALUES ('run-1', '2026-03-01 10:00:00', '2026-03-01 11:00:00', 'sft', 'ok');
INSERT INTO evaluations (id, baseline, candidate, tasks, gain) VALUES ('evaluation-1', 'calculator@0', 'calculator@1', 10, 0.5);
INSERT INTO ingest_segments (segment, signal, decoder, requests, rows, bytes) VALUES ('segment-1', 'traces', 'engine', 1, 2, 300);
