-- One row a span, as clickhouseexporter writes it. {source} is the segment, {values} the lambdas of values.sql, which also
-- says why members of tuples are taken by place: their order is that of queries.py.
INSERT INTO otel_traces
(
    Timestamp, TraceId, SpanId, ParentSpanId, TraceState, SpanName, SpanKind, ServiceName, ResourceAttributes, ScopeName,
    ScopeVersion, SpanAttributes, Duration, StatusCode, StatusMessage, Events.Timestamp, Events.Name, Events.Attributes,
    Links.TraceId, Links.SpanId, Links.TraceState, Links.Attributes
)
WITH
{values}
SELECT
    nano_time(start),
    id_text(trace_id) AS TraceId,
    id_text(span_id) AS SpanId,
    id_text(parent_span_id),
    trace_state,
    name,
    transform(kind, [0, 1, 2, 3, 4, 5], ['Unspecified', 'Internal', 'Server', 'Client', 'Producer', 'Consumer'], ''),
    service,
    resource,
    scope_name,
    scope_version,
    to_map(pairs(attributes)),
    end - start,
    transform(code, [0, 1, 2], ['Unset', 'Ok', 'Error'], ''),
    message,
    arrayMap(t -> nano_time(t), event_times),
    event_names,
    arrayMap(k -> to_map(event_pairs(k)), event_attributes),
    arrayMap(i -> id_text(i), link_trace_ids),
    arrayMap(i -> id_text(i), link_span_ids),
    link_trace_states,
    arrayMap(k -> to_map(event_pairs(k)), link_attributes)
FROM
(
    SELECT
        resource, service, scope.1 AS scope_name, scope.2 AS scope_version,
        span.1 AS trace_id, span.2 AS span_id, span.3 AS trace_state, span.4 AS parent_span_id, span.5 AS name,
        span.6 AS kind, span.7 AS start, span.8 AS end, span.9 AS attributes,
        span.10.1 AS event_times, span.10.2 AS event_names, span.10.3 AS event_attributes,
        span.11.1 AS link_trace_ids, span.11.2 AS link_span_ids, span.11.3 AS link_trace_states, span.11.4 AS link_attributes,
        span.12.1 AS message, span.12.2 AS code
    FROM
    (
        SELECT resource, service, scope_spans.1 AS scope, arrayJoin(scope_spans.2) AS span
        FROM
        (
            -- Rendered once a resource, not once a span.
            SELECT to_map(resource_pairs) AS resource, service_name(resource_pairs) AS service, arrayJoin(scopes) AS scope_spans
            FROM
            (
                SELECT pairs(resource_spans.1.1) AS resource_pairs, resource_spans.2 AS scopes
                FROM (SELECT arrayJoin(resource_spans) AS resource_spans FROM {source})
            )
        )
    )
)
