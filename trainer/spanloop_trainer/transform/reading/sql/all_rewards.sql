-- Every judgement, also those that `build` computed: one row an id, the newest.
SELECT
    id, toTimeZone(time, 'UTC') AS time, received, trace_id, span_id, response_id, session_id,
    toString(name) AS name, value, toString(source) AS source,
    toString(evaluator) AS evaluator, toString(evaluator_version) AS version,
    source = 'rule' OR startsWith(id, 'spanloop.build:') AS computed
FROM
(
    SELECT * FROM rewards ORDER BY id, time DESC, received DESC, value LIMIT 1 BY id
)
WHERE isFinite(value)
ORDER BY id
