-- Model calls of one flavour; its own SQL takes the places of the comments below.
-- The JSON arrays are sliced by the engine; nothing else of a span leaves the store, and no name that begins with an underscore.
SELECT COLUMNS('^[^_]') FROM
(
SELECT
    TraceId AS trace_id,
    SpanId AS span_id,
    ParentSpanId AS parent_span_id,
    toTimeZone(Timestamp, 'UTC') AS start,
    Duration AS duration_ns,
    toString(ServiceName) AS service,
    if(ResourceAttributes['service.instance.id'] != '', ResourceAttributes['service.instance.id'], toString(ServiceName)) AS instance,
    multiIf(
        SpanAttributes['session.id'] != '', SpanAttributes['session.id'],
        SpanAttributes['gen_ai.conversation.id'] != '', SpanAttributes['gen_ai.conversation.id'],
        SpanAttributes['traceloop.association.properties.session_id'] != '', SpanAttributes['traceloop.association.properties.session_id'],
        SpanAttributes['traceloop.association.properties.thread_id'] != '', SpanAttributes['traceloop.association.properties.thread_id'],
        ResourceAttributes['session.id']) AS session,
    multiIf(
        SpanAttributes['spanloop.rollout.id'] != '', SpanAttributes['spanloop.rollout.id'],
        ResourceAttributes['spanloop.rollout.id']) AS rollout,
    multiIf(
        SpanAttributes['spanloop.task.id'] != '', SpanAttributes['spanloop.task.id'],
        ResourceAttributes['spanloop.task.id']) AS explicit_task,
    toString(StatusCode) = 'Error' AS failed,
    if(SpanAttributes['error.type'] != '', SpanAttributes['error.type'], if(failed, StatusMessage, '')) AS error_type,
    -- What the exporter recorded inside the agent, where the server named it: the gateway's stamp by the same name.
    SpanAttributes['spanloop.model.version'] AS own_served_version,
    /* columns */
FROM /* spans */ /* joined */
WHERE Timestamp >= fromUnixTimestamp64Nano({since:Int64})
  AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
  AND (empty({services:Array(String)}) OR has({services:Array(String)}, toString(ServiceName)))
  AND SpanAttributes['spanloop.gateway'] != 'true'
  AND (/* recognise */)
  AND cityHash64(TraceId) % {shards:UInt64} = {shard:UInt64}
)
