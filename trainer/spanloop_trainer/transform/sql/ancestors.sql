-- The skeleton of every trace in which a model call has a parent: who called whom, and which spans are agents.
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
    SELECT TraceId FROM otel_traces
    WHERE Timestamp >= fromUnixTimestamp64Nano({since:Int64})
      AND Timestamp < fromUnixTimestamp64Nano({until:Int64})
      AND ParentSpanId != ''
      AND SpanAttributes['spanloop.gateway'] != 'true'
      AND (empty({services:Array(String)}) OR has({services:Array(String)}, toString(ServiceName)))
      AND cityHash64(TraceId) % {shards:UInt64} = {shard:UInt64}
      AND (/* recognise */))
