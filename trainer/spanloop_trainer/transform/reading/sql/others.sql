-- Spans of a window that a build does not read: no model calls, or model calls of a convention that is not known; what counts.sql
-- counts neither as the gateway's nor as a call that is read. One row a span.
SELECT TraceId AS trace_id, SpanId AS span_id, toTimeZone(Timestamp, 'UTC') AS start,
    concat(toString(ServiceName), ' ', toString(SpanName)) AS detail
FROM otel_traces
WHERE Timestamp >= fromUnixTimestamp64Nano({since:Int64})
  AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
  AND NOT has({erased:Array(String)}, TraceId)
  AND (empty({services:Array(String)}) OR has({services:Array(String)}, toString(ServiceName))
       OR SpanAttributes['spanloop.gateway'] = 'true')
  AND (SpanAttributes['spanloop.gateway'] != 'true' AND NOT (/* recognise */)
       OR SpanAttributes['spanloop.gateway'] = 'true' AND SpanAttributes['gen_ai.operation.name'] = 'embeddings')
  AND {model_calls:Bool} = (SpanAttributes['gen_ai.operation.name'] IN /* operations */)
ORDER BY Timestamp, TraceId, SpanId
LIMIT 1 BY TraceId, SpanId
LIMIT {limit:UInt32}
