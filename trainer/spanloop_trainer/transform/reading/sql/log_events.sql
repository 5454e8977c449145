-- Behind FROM otel_traces: the log events that hold a call's messages, in order, by trace and span.
-- Records of one moment keep the order in which they were sent (part, place in it). A sender that saw no answer sends its records
-- again: where each occurs twice as often, half of them are copies.
LEFT JOIN
(
    SELECT
        _log_trace, _log_span,
        arraySort(groupArray((Timestamp, _block, _part_offset, _event))) AS _sorted,
        arrayMap(one -> cityHash64(one.1, one.4), _sorted) AS _codes,
        arrayMap(code -> countEqual(_codes, code), _codes) AS _times,
        if(arrayAll(times -> times % arrayMin(_times) = 0, _times), arrayMin(_times), 1) AS _copies,
        arrayMap(kept -> kept.1.4, arrayFilter(kept -> kept.2 * _copies <= kept.3,
            arrayZip(_sorted, arrayEnumerateUniq(_codes), _times))) AS _log_events
    FROM
    (
        SELECT
            TraceId AS _log_trace, SpanId AS _log_span, Timestamp, _part_offset,
            toUInt64OrZero(splitByChar('_', _part)[2]) AS _block,
            if(EventName != '', EventName, LogAttributes['event.name']) AS _name,
            (_name,
             multiIf(Body != '', Body, LogAttributes['gen_ai.event.content'] != '', LogAttributes['gen_ai.event.content'],
                toJSONString(LogAttributes)),
             LogAttributes['gen_ai.input.messages'], LogAttributes['gen_ai.output.messages'],
             LogAttributes['gen_ai.system_instructions'], LogAttributes['gen_ai.tool.definitions']) AS _event
        FROM otel_logs
        WHERE SpanId != ''
          AND Timestamp >= fromUnixTimestamp64Nano(greatest({since:Int64} - 60000000000, 0))
          -- A call that began in the window may end, and be told of, long after it.
          AND Timestamp < fromUnixTimestamp64Nano(least({until:Int64}, 9223285636854775807) + 86400000000000)
          AND cityHash64(TraceId) % {shards:UInt64} = {shard:UInt64}
          AND match(_name, '^gen_ai\.([a-z]+\.message|choice|client\.inference\.operation\.details)$')
    )
    GROUP BY _log_trace, _log_span
) AS _logs ON TraceId = _log_trace AND SpanId = _log_span
