-- One span by its id, in one trace or in any: what it is, for telling why it is no row.
SELECT
    TraceId AS trace_id,
    SpanId AS span_id,
    toTimeZone(min(Timestamp), 'UTC') AS start,
    toString(any(ServiceName)) AS service,
    toString(any(SpanName)) AS name,
    any(SpanAttributes['spanloop.gateway']) = 'true' AND any(SpanAttributes['gen_ai.operation.name'] AS operation) != 'embeddings' AS gateway,
    any(operation) IN /* operations */ AS model_call
FROM otel_traces
WHERE SpanId = {span:String} AND ({trace:String} = '' OR TraceId = {trace:String})
GROUP BY TraceId, SpanId
ORDER BY TraceId
LIMIT 10
