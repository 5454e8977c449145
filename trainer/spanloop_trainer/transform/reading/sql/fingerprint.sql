-- What a part of the window holds, by ids alone: a span, or the log record of one, that came late, came again or was erased since
-- changes it.
SELECT concat(
    toString(count()), '-', hex(sum(cityHash64(TraceId, SpanId, Timestamp))),
    -- What stands around its calls in their traces, whoever sent it: agents, tools, a step after midnight.
    (
        SELECT concat('-', toString(count()), '-', hex(sum(cityHash64(TraceId, SpanId, Timestamp))))
        FROM otel_traces
        WHERE Timestamp >= fromUnixTimestamp64Nano(greatest({since:Int64} - 3600000000000, 0))
          AND Timestamp < fromUnixTimestamp64Nano(least({until:Int64}, 9223285636854775807) + 3600000000000)
          AND NOT has({erased:Array(String)}, TraceId)
          AND TraceId IN (
              SELECT TraceId FROM otel_traces
              WHERE Timestamp >= fromUnixTimestamp64Nano({since:Int64})
                AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
                AND ParentSpanId != ''
                AND (empty({services:Array(String)}) OR has({services:Array(String)}, toString(ServiceName)))
                AND cityHash64(TraceId) % {shards:UInt64} = {shard:UInt64}
          )
    ),
    /* logs */
    ) AS fingerprint
FROM otel_traces
WHERE Timestamp >= fromUnixTimestamp64Nano({since:Int64})
  AND Timestamp < fromUnixTimestamp64Nano({until:Int64}) + INTERVAL 1 MINUTE
  AND NOT has({erased:Array(String)}, TraceId)
  AND (empty({services:Array(String)}) OR has({services:Array(String)}, toString(ServiceName))
       OR SpanAttributes['spanloop.gateway'] = 'true')
  AND cityHash64(TraceId) % {shards:UInt64} = {shard:UInt64}
