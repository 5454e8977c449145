-- Log records of the spans of a part of the window: a flavour may read messages from them (see log_events.sql).
(
    SELECT concat('-', toString(count()), '-', hex(sum(cityHash64(TraceId, SpanId, Timestamp))))
    FROM otel_logs
    WHERE SpanId != ''
      AND Timestamp >= fromUnixTimestamp64Nano(greatest({since:Int64} - 60000000000, 0))
      AND Timestamp < fromUnixTimestamp64Nano(least({until:Int64}, 9223285636854775807) + 86400000000000)
      AND NOT has({erased:Array(String)}, TraceId)
      AND cityHash64(TraceId) % {shards:UInt64} = {shard:UInt64}
      AND (TraceId, SpanId) IN (
          SELECT TraceId, SpanId FROM otel_traces
          WHERE Timestamp >= fromUnixTimestamp64Nano({since:Int64}) AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
      )
)
