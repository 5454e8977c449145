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
        /* session */
        SpanAttributes['traceloop.association.properties.session_id'] != '', SpanAttributes['traceloop.association.properties.session_id'],
        SpanAttributes['traceloop.association.properties.thread_id'] != '', SpanAttributes['traceloop.association.properties.thread_id'],
        SpanAttributes['ai.telemetry.metadata.sessionId'] != '', SpanAttributes['ai.telemetry.metadata.sessionId'],
        SpanAttributes['gcp.vertex.agent.session_id'] != '', SpanAttributes['gcp.vertex.agent.session_id'],
        ResourceAttributes['session.id']) AS session,
    multiIf(
        SpanAttributes['spanloop.rollout.id'] != '', SpanAttributes['spanloop.rollout.id'],
        ResourceAttributes['spanloop.rollout.id']) AS rollout,
    multiIf(
        SpanAttributes['spanloop.task.id'] != '', SpanAttributes['spanloop.task.id'],
        ResourceAttributes['spanloop.task.id']) AS explicit_task,
    toString(StatusCode) = 'Error' AS failed,
    -- The class of the error, and not its message, in which every request has another number.
    multiIf(
        SpanAttributes['error.type'] != '', SpanAttributes['error.type'],
        NOT failed, '',
        arrayExists(name -> name = 'exception', Events.Name),
        arrayLast((attributes, name) -> name = 'exception', Events.Attributes, Events.Name)['exception.type'],
        '') AS _raised,
    multiIf(
        _raised != '' OR NOT failed, _raised,
        match(StatusMessage, '^[A-Za-z_][A-Za-z0-9_.]*[:(]'), extract(StatusMessage, '^([A-Za-z0-9_.]+)'),
        -- No class: what stands before the message's particulars.
        extract(StatusMessage, '^(?:[^:({\\n]*[^:({\\n ])|^.*')) AS _error,
    -- What a class leaves open and its message tells.
    extract(StatusMessage, '(?i)content[ _-]?(?:filter|policy)|responsible_?ai|timed?[ _-]?out') AS _told,
    if(_error = '' OR _told = '' OR positionCaseInsensitive(_error, replaceRegexpAll(_told, '[ _-]|d', '')) > 0
        OR position(_error, _told) > 0, _error, concat(_error, ': ', _told)) AS error_type,
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
