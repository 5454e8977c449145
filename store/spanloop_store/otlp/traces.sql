-- One row a span, as clickhouseexporter writes it. {source} is the segment, {values} the lambdas of values.sql.
INSERT INTO otel_traces
(
    Timestamp, TraceId, SpanId, ParentSpanId, TraceState, SpanName, SpanKind, ServiceName, ResourceAttributes, ScopeName,
    ScopeVersion, SpanAttributes, Duration, StatusCode, StatusMessage, Events.Timestamp, Events.Name, Events.Attributes,
    Links.TraceId, Links.SpanId, Links.TraceState, Links.Attributes
)
WITH
{values}
SELECT
    nano_time(span.start_time_unix_nano),
    id_text(span.trace_id) AS TraceId,
    id_text(span.span_id) AS SpanId,
    id_text(span.parent_span_id),
    span.trace_state,
    span.name,
    transform(span.kind, [0, 1, 2, 3, 4, 5], ['Unspecified', 'Internal', 'Server', 'Client', 'Producer', 'Consumer'], ''),
    service,
    resource,
    scope_name,
    scope_version,
    to_map(pairs(span.attributes)),
    span.end_time_unix_nano - span.start_time_unix_nano,
    transform(span.status.code, [0, 1, 2], ['Unset', 'Ok', 'Error'], ''),
    span.status.message,
    arrayMap(t -> nano_time(t), span.events.time_unix_nano),
    span.events.name,
    arrayMap(k -> to_map(pairs(k)), span.events.attributes),
    arrayMap(i -> id_text(i), span.links.trace_id),
    arrayMap(i -> id_text(i), span.links.span_id),
    span.links.trace_state,
    arrayMap(k -> to_map(pairs(k)), span.links.attributes)
FROM
(
    SELECT
        resource,
        service,
        scope_spans.scope.name AS scope_name,
        scope_spans.scope.version AS scope_version,
        arrayJoin(scope_spans.spans) AS span
    FROM
    (
        -- Rendered once a resource, not once a span.
        SELECT to_map(resource_pairs) AS resource, service_name(resource_pairs) AS service, arrayJoin(scopes) AS scope_spans
        FROM
        (
            SELECT pairs(resource_spans.resource.attributes) AS resource_pairs, resource_spans.scope_spans AS scopes
            FROM (SELECT arrayJoin(resource_spans) AS resource_spans FROM {source})
        )
    )
)
