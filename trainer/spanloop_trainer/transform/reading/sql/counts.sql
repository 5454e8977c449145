-- The top of the funnel: spans in the window, and those that are model calls by anybody's convention.
-- A span that a sender sent twice is one span: ids are counted, not rows (8 bytes of memory each).
SELECT
    uniqExact(cityHash64(TraceId, SpanId)) AS spans,
    count() - spans AS rows_again,
    uniqExactIf(cityHash64(TraceId, SpanId), SpanAttributes['spanloop.gateway'] = 'true'
        AND SpanAttributes['gen_ai.operation.name'] != 'embeddings') AS gateway,
    uniqExactIf(cityHash64(TraceId, SpanId), SpanAttributes['spanloop.gateway'] != 'true' AND (
        SpanAttributes['gen_ai.operation.name'] IN /* operations */
        OR (/* recognise */))) AS model_calls,
    [/* flavours */] AS by_flavour
FROM otel_traces
WHERE Timestamp >= fromUnixTimestamp64Nano({since:Int64})
  AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
  AND NOT has({erased:Array(String)}, TraceId)
  AND (empty({services:Array(String)}) OR has({services:Array(String)}, toString(ServiceName))
       OR SpanAttributes['spanloop.gateway'] = 'true')
  AND cityHash64(TraceId) % {shards:UInt64} = {shard:UInt64}
