-- One row a log record, as clickhouseexporter writes it. {source} is the segment, {values} the lambdas of values.sql, which
-- also says why members of tuples are taken by place: their order is that of queries.py.
INSERT INTO otel_logs
(
    Timestamp, TraceId, SpanId, TraceFlags, SeverityText, SeverityNumber, ServiceName, Body, ResourceSchemaUrl,
    ResourceAttributes, ScopeSchemaUrl, ScopeName, ScopeVersion, ScopeAttributes, LogAttributes, EventName
)
WITH
{values}
SELECT
    nano_time(if(time = 0, observed, time)) AS Timestamp,
    id_text(trace_id) AS TraceId,
    id_text(span_id) AS SpanId,
    toUInt8(bitAnd(flags, 255)) AS TraceFlags,
    severity_text AS SeverityText,
    toUInt8(bitAnd(severity_number, 255)) AS SeverityNumber,
    service AS ServiceName,
    value_text(body) AS Body,
    resource_schema_url AS ResourceSchemaUrl,
    resource AS ResourceAttributes,
    scope_schema_url AS ScopeSchemaUrl,
    scope_name AS ScopeName,
    scope_version AS ScopeVersion,
    scope AS ScopeAttributes,
    to_map(pairs(attributes)) AS LogAttributes,
    event_name AS EventName
FROM
(
    SELECT
        resource, service, resource_schema_url, scope, scope_schema_url, scope_name, scope_version,
        record.1 AS time, record.2 AS observed, record.3 AS severity_number, record.4 AS severity_text, record.5 AS body,
        record.6 AS attributes, record.7 AS flags, record.8 AS trace_id, record.9 AS span_id, record.10 AS event_name
    FROM
    (
        SELECT
            resource, service, resource_schema_url, scope_logs.2 AS scope_schema_url,
            scope_logs.1.1 AS scope_name, scope_logs.1.2 AS scope_version, to_map(pairs(scope_logs.1.3)) AS scope,
            arrayJoin(scope_logs.3) AS record
        FROM
        (
            -- Rendered once a resource, not once a record.
            SELECT
                to_map(resource_pairs) AS resource, service_name(resource_pairs) AS service, resource_schema_url,
                arrayJoin(scopes) AS scope_logs
            FROM
            (
                SELECT
                    pairs(resource_logs.1.1) AS resource_pairs, resource_logs.2 AS resource_schema_url,
                    resource_logs.3 AS scopes
                FROM (SELECT arrayJoin(resource_logs) AS resource_logs FROM {source})
            )
        )
    )
)
