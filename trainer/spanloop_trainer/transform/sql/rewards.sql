-- Judgements by others. Rule rewards are computed afresh, so their rows (for dashboards) are not read back.
SELECT
    id, trace_id, span_id, response_id, session_id,
    toString(name) AS name, value, toString(source) AS source,
    toString(evaluator) AS evaluator, toString(evaluator_version) AS version
FROM rewards
WHERE source != 'rule' AND value IS NOT NULL
ORDER BY id, time
LIMIT 1 BY id
