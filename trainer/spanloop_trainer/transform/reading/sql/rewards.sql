-- Judgements by others, one row an id: the newest, so that a judgement can be taken back. What `build` computes itself (rules,
-- verifiers, its judge) it computes afresh; those rows are for dashboards, and are not read back.
SELECT
    id, toTimeZone(time, 'UTC') AS time, trace_id, span_id, response_id, session_id,
    toString(name) AS name, value, toString(source) AS source,
    toString(evaluator) AS evaluator, toString(evaluator_version) AS version
FROM
(
    SELECT * FROM rewards WHERE source != 'rule' AND NOT startsWith(id, 'spanloop.build:')
    ORDER BY id, time DESC, received DESC, value LIMIT 1 BY id
)
WHERE isFinite(value)
ORDER BY id
