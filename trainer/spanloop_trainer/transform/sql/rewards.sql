-- Judgements by others, one row an id: the newest, so that a judgement can be taken back. Rule rewards are computed afresh;
-- their rows (for dashboards) are not read back.
SELECT
    id, trace_id, span_id, response_id, session_id,
    toString(name) AS name, value, toString(source) AS source,
    toString(evaluator) AS evaluator, toString(evaluator_version) AS version
FROM
(
    SELECT * FROM rewards WHERE source != 'rule' ORDER BY id, time DESC, received DESC, value LIMIT 1 BY id
)
WHERE isFinite(value)
ORDER BY id
