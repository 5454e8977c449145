-- Midnights (UTC, nanoseconds since 1970) that begin a day of the window with spans.
SELECT DISTINCT toUnixTimestamp(toStartOfDay(Timestamp, 'UTC')) * 1000000000 AS day
FROM otel_traces
WHERE Timestamp >= fromUnixTimestamp64Nano({since:Int64})
  AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
ORDER BY day
