-- The skeleton of some traces: who called whom, and which spans are agents.
SELECT
    TraceId AS trace_id,
    SpanId AS span_id,
    ParentSpanId AS parent_span_id,
    (SpanAttributes['gen_ai.operation.name'] IN ('invoke_agent', 'create_agent')
        OR SpanAttributes['traceloop.span.kind'] IN ('workflow', 'agent')
        OR SpanAttributes['openinference.span.kind'] = 'AGENT') AS is_agent,
    SpanAttributes['gen_ai.agent.name'] AS agent_name,
    if(SpanAttributes['session.id'] != '', SpanAttributes['session.id'], SpanAttributes['gen_ai.conversation.id']) AS agent_session
FROM otel_traces
WHERE TraceId IN (
/* traces */
)
