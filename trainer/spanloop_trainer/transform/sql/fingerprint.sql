-- What a part of the window holds, by ids alone: a span that came late, came again or was erased since changes it.
SELECT concat(toString(count()), '-', hex(sum(cityHash64(TraceId, SpanId, Timestamp)))) AS fingerprint
FROM otel_traces
WHERE Timestamp >= fromUnixTimestamp64Nano({since:Int64})
  AND Timestamp < fromUnixTimestamp64Nano({until:Int64}) + INTERVAL 1 MINUTE
  AND NOT has({erased:Array(String)}, TraceId)
  AND (empty({services:Array(String)}) OR has({services:Array(String)}, toString(ServiceName))
       OR SpanAttributes['spanloop.gateway'] = 'true')
  AND cityHash64(TraceId) % {shards:UInt64} = {shard:UInt64}
