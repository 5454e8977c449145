-- What the view behind otel_traces should have written for the times {within} and did not: a crash may take its rows alone.
-- A second row of one trace does no harm, since readers take the least Start and the greatest End.
INSERT INTO otel_traces_trace_id_ts (TraceId, Start, End)
SELECT seen.TraceId, seen.Start, seen.End
FROM
(
    SELECT TraceId, toDateTime(min(Timestamp)) AS Start, toDateTime(max(Timestamp)) AS End
    FROM otel_traces
    WHERE ({within}) AND TraceId != ''
    GROUP BY TraceId
) AS seen
LEFT JOIN
(
    SELECT TraceId, min(Start) AS Start, max(End) AS End, 1 AS present
    FROM otel_traces_trace_id_ts
    WHERE TraceId IN
    (
        SELECT TraceId FROM otel_traces WHERE {within}
    )
    GROUP BY TraceId
) AS known ON known.TraceId = seen.TraceId
WHERE known.present = 0 OR seen.Start < known.Start OR seen.End > known.End
SETTINGS insert_deduplicate = 0
