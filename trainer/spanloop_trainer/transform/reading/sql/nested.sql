-- Traces of a window in which a model call has a parent.
SELECT TraceId FROM otel_traces
WHERE Timestamp >= fromUnixTimestamp64Nano({since:Int64})
  AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
  AND ParentSpanId != ''
  AND SpanAttributes['spanloop.gateway'] != 'true'
  AND (empty({services:Array(String)}) OR has({services:Array(String)}, toString(ServiceName)))
  AND cityHash64(TraceId) % {shards:UInt64} = {shard:UInt64}
  AND (/* recognise */)
