-- The gateway's stamps: which version served, and the exact tokens. They are joined to the agents' calls.
SELECT
    TraceId AS trace_id,
    SpanId AS span_id,
    ParentSpanId AS parent_span_id,
    toTimeZone(Timestamp, 'UTC') AS start,
    Timestamp < fromUnixTimestamp64Nano({until:Int64}) AS in_window,
    SpanAttributes['gen_ai.response.id'] AS response_id,
    SpanAttributes['spanloop.model.version'] AS served_version,
    SpanAttributes['spanloop.prompt.version'] AS prompt_version,
    SpanAttributes['spanloop.prompt.requested'] AS prompt_requested,
    JSONExtract(SpanAttributes['spanloop.prompt_token_ids'], 'Array(Int32)') AS prompt_ids,
    JSONExtract(SpanAttributes['spanloop.completion_token_ids'], 'Array(Array(Int32))') AS completion_ids,
    JSONExtract(SpanAttributes['spanloop.completion_logprobs'], 'Array(Array(Float64))') AS logprobs,
    toInt64OrNull(SpanAttributes['gen_ai.request.seed']) AS gateway_seed,
    toFloat64OrNull(SpanAttributes['gen_ai.request.temperature']) AS gateway_temperature,
    toFloat64OrNull(SpanAttributes['gen_ai.request.top_p']) AS gateway_top_p,
    toInt64OrNull(SpanAttributes['gen_ai.request.max_tokens']) AS gateway_max_tokens
FROM otel_traces
WHERE Timestamp >= fromUnixTimestamp64Nano({since:Int64})
  -- A call that began just before the end of the window reaches the gateway after it.
  AND Timestamp < fromUnixTimestamp64Nano({until:Int64}) + INTERVAL 1 MINUTE
  AND SpanAttributes['spanloop.gateway'] = 'true'
  -- An embedding is no call of an agent's policy.
  AND SpanAttributes['gen_ai.operation.name'] != 'embeddings'
  AND cityHash64(TraceId) % {shards:UInt64} = {shard:UInt64}
