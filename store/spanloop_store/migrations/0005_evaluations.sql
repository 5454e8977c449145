-- Events `gen_ai.evaluation.result` (OpenTelemetry's semantic conventions for generative AI) become rows of `rewards`: log
-- records of that name, and events of that name on spans. By views, so that it does not matter who inserts: our collector or
-- a stock one. A view may never throw, or it would stop the insert of the rows beside it.
--
-- A reward is made of an event that has a name and a finite number, `true` or `false`, or a label alone (unscored). Any other
-- event stays what it was and makes none: `spanloop status` counts those.
--
-- `id` is the key that the sender gave, else a hash of what makes the judgement this one and no other, so that an event that
-- was sent twice is one fact. spanloop_store.evaluations reads these statements, for the events that were there before them.

-- An event's segment is deleted once its insert has returned; its reward must be on the disk then, too.
ALTER TABLE rewards MODIFY SETTING fsync_after_insert = 1, fsync_part_directory = 1;

-- Keeps nothing. Two steps, since planning a view costs an insert of spans more than running it does, and only the first is
-- planned for every segment: 1 ms, where all in one took 9 (bench/ingest, 3 KB spans).
CREATE TABLE IF NOT EXISTS evaluation_events
(
    `TraceId` String,
    `SpanId` String,
    `ParentSpanId` String,
    `SpanName` String,
    `ServiceName` String,
    `ScopeName` String,
    `ResourceAttributes` Map(LowCardinality(String), String),
    `SpanAttributes` Map(LowCardinality(String), String),
    `Times` Array(DateTime64(9)),
    `Names` Array(String),
    `Attributes` Array(Map(LowCardinality(String), String))
)
ENGINE = Null;

CREATE MATERIALIZED VIEW IF NOT EXISTS evaluation_events_rewards_mv
TO rewards
AS SELECT
    if(event['spanloop.evaluation.id'] != '', event['spanloop.evaluation.id'], lower(hex(sipHash128(
        toUnixTimestamp64Nano(time), trace_id, span_id, response_id, session_id, name, score, label, evaluator,
        evaluator_version)))) AS id,
    event_time AS time,
    TraceId AS trace_id,
    -- A judgement of a span that had ended is on a span of its own below it.
    if(ScopeName = 'spanloop' AND SpanName = concat('evaluate ', name), ParentSpanId, SpanId) AS span_id,
    if(event['gen_ai.response.id'] != '', event['gen_ai.response.id'], SpanAttributes['gen_ai.response.id']) AS response_id,
    multiIf(
        event['session.id'] != '', event['session.id'],
        event['gen_ai.conversation.id'] != '', event['gen_ai.conversation.id'],
        SpanAttributes['session.id'] != '', SpanAttributes['session.id'],
        SpanAttributes['gen_ai.conversation.id'] != '', SpanAttributes['gen_ai.conversation.id'],
        ResourceAttributes['session.id']) AS session_id,
    event['gen_ai.evaluation.name'] AS name,
    multiIf(
        score = 'true', 1., score = 'false', 0., isFinite(toFloat64OrNull(score)), toFloat64OrNull(score), NULL) AS value,
    event['gen_ai.evaluation.score.label'] AS label,
    event['gen_ai.evaluation.explanation'] AS explanation,
    if(ScopeName = 'spanloop.feedback', 'feedback', 'event') AS source,
    if(event['spanloop.evaluator'] != '', event['spanloop.evaluator'], ServiceName) AS evaluator,
    event['spanloop.evaluator.version'] AS evaluator_version,
    mapFilter((k, v) -> NOT startsWith(k, 'gen_ai.evaluation.') AND NOT startsWith(k, 'spanloop.eval') AND k NOT IN
        ('gen_ai.response.id', 'session.id', 'event.name'), event) AS attributes
FROM
(
    SELECT
        TraceId, SpanId, ParentSpanId, SpanName, ServiceName, ScopeName, ResourceAttributes, SpanAttributes, event_time, event,
        event['gen_ai.evaluation.score.value'] AS score
    FROM evaluation_events
    ARRAY JOIN Times AS event_time, Names AS event_name, Attributes AS event
    WHERE event_name = 'gen_ai.evaluation.result'
)
WHERE name != '' AND (value IS NOT NULL OR (score = '' AND label != ''));

CREATE MATERIALIZED VIEW IF NOT EXISTS otel_traces_evaluation_events_mv
TO evaluation_events
AS SELECT
    TraceId, SpanId, ParentSpanId, SpanName, ServiceName, ScopeName, ResourceAttributes, SpanAttributes,
    Events.Timestamp AS Times, Events.Name AS Names, Events.Attributes AS Attributes
FROM otel_traces
WHERE has(Events.Name, 'gen_ai.evaluation.result');

-- SDKs from before EventName was a field of its own wrote it as an attribute.
CREATE MATERIALIZED VIEW IF NOT EXISTS otel_logs_evaluation_events_mv
TO evaluation_events
AS SELECT
    TraceId, SpanId, '' AS ParentSpanId, '' AS SpanName, ServiceName, ScopeName, ResourceAttributes,
    CAST(map(), 'Map(LowCardinality(String), String)') AS SpanAttributes,
    [Timestamp] AS Times, ['gen_ai.evaluation.result'] AS Names, [LogAttributes] AS Attributes
FROM otel_logs
WHERE EventName = 'gen_ai.evaluation.result' OR LogAttributes['event.name'] = 'gen_ai.evaluation.result';
