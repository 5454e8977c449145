-- How much there is to read in a window, and where to cut it in parts of about equal size: nanoseconds since 1970.
SELECT
    count() AS spans,
    quantiles(/* levels */)(toUnixTimestamp64Nano(Timestamp)) AS cuts,
    (
        SELECT if(sum(rows) = 0, 0, sum(column_data_uncompressed_bytes) / sum(rows)) FROM system.parts_columns
        WHERE active AND database = currentDatabase() AND table = 'otel_traces' AND column = 'SpanAttributes'
    ) AS bytes_a_span
FROM otel_traces
WHERE Timestamp >= fromUnixTimestamp64Nano({since:Int64})
  AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
  AND (empty({services:Array(String)}) OR has({services:Array(String)}, toString(ServiceName)))
  AND cityHash64(TraceId) % {shards:UInt64} = {shard:UInt64}
