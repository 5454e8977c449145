-- Tokens of model calls as whoever reported them counted, one row a span; conventions differ in the names.
SELECT
    TraceId AS trace_id,
    SpanId AS span_id,
    SpanAttributes['gen_ai.response.id'] AS response_id,
    SpanAttributes['spanloop.gateway'] = 'true' AS is_gateway,
    toInt64OrNull(arrayFirst(text -> text != '', [
        SpanAttributes['gen_ai.usage.input_tokens'], SpanAttributes['gen_ai.usage.prompt_tokens'],
        SpanAttributes['llm.token_count.prompt'], SpanAttributes['ai.usage.inputTokens'], SpanAttributes['ai.usage.promptTokens']
    ])) AS input_tokens,
    toInt64OrNull(arrayFirst(text -> text != '', [
        SpanAttributes['gen_ai.usage.output_tokens'], SpanAttributes['gen_ai.usage.completion_tokens'],
        SpanAttributes['llm.token_count.completion'], SpanAttributes['ai.usage.outputTokens'],
        SpanAttributes['ai.usage.completionTokens']
    ])) AS output_tokens
FROM otel_traces
WHERE Timestamp >= fromUnixTimestamp64Nano({since:Int64})
  -- As for the gateway's stamps: a call that began just before the end reaches it after.
  AND Timestamp < fromUnixTimestamp64Nano({until:Int64}) + INTERVAL 1 MINUTE
  AND (input_tokens > 0 OR output_tokens > 0)
-- A span that was sent twice is one.
ORDER BY trace_id, span_id, Timestamp
LIMIT 1 BY trace_id, span_id
