-- The skeleton of some traces: who called whom, which spans are agents, tools or steps of a chain, and the ids that they name.
SELECT
    TraceId AS trace_id,
    SpanId AS span_id,
    ParentSpanId AS parent_span_id,
    toTimeZone(Timestamp, 'UTC') AS start,
    (SpanAttributes['gen_ai.operation.name'] IN ('invoke_agent', 'create_agent')
        OR SpanAttributes['traceloop.span.kind'] IN ('workflow', 'agent')
        OR SpanAttributes['openinference.span.kind'] = 'AGENT'
        -- LangChain's agents are graphs: to OpenInference a CHAIN, to Traceloop a task beside an empty `invoke_agent`.
        OR SpanAttributes['openinference.span.kind'] = 'CHAIN' AND SpanName != ''
            AND SpanName = JSONExtractString(SpanAttributes['metadata'], 'lc_agent_name')
        OR SpanAttributes['traceloop.span.kind'] = 'task' AND SpanAttributes['traceloop.entity.name'] != ''
            AND SpanAttributes['traceloop.entity.name']
                IN (SpanAttributes['traceloop.association.properties.lc_agent_name'], 'LangGraph')) AS is_agent,
    (SpanAttributes['gen_ai.operation.name'] = 'execute_tool'
        OR SpanAttributes['traceloop.span.kind'] = 'tool'
        OR SpanAttributes['openinference.span.kind'] = 'TOOL'
        OR SpanAttributes['ai.operationId'] = 'ai.toolCall') AS is_tool,
    SpanAttributes['openinference.span.kind'] = 'CHAIN' AS is_chain,
    multiIf(
        SpanAttributes['gen_ai.agent.name'] != '', SpanAttributes['gen_ai.agent.name'],
        SpanAttributes['agent.name'] != '', SpanAttributes['agent.name'],
        SpanAttributes['traceloop.span.kind'] = 'agent', SpanAttributes['traceloop.entity.name'],
        is_agent AND SpanAttributes['traceloop.span.kind'] = 'task', SpanAttributes['traceloop.entity.name'],
        NOT is_agent OR SpanAttributes['openinference.span.kind'] = '', '',
        SpanAttributes['graph.node.id'] != '', SpanAttributes['graph.node.id'],
        JSONExtractString(SpanAttributes['metadata'], 'lc_agent_name')) AS agent_name,
    multiIf(
        /* session */
        -- AutoGen names no session; an agent's id is TYPE/KEY, and agents of one team run have its id in both.
        extract(SpanAttributes['gen_ai.agent.id'], '_[0-9a-f-]{36}/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})$')
    ) AS agent_session,
    SpanAttributes['spanloop.rollout.id'] AS rollout_above,
    SpanAttributes['spanloop.task.id'] AS task_above
FROM otel_traces
WHERE TraceId IN (
/* traces */
)
