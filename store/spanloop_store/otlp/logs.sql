-- One row a log record, as clickhouseexporter writes it. {source} is the segment, {values} the lambdas of values.sql.
INSERT INTO otel_logs
(
    Timestamp, TraceId, SpanId, TraceFlags, SeverityText, SeverityNumber, ServiceName, Body, ResourceSchemaUrl,
    ResourceAttributes, ScopeSchemaUrl, ScopeName, ScopeVersion, ScopeAttributes, LogAttributes, EventName
)
WITH
{values}
SELECT
    nano_time(if(record.time_unix_nano = 0, record.observed_time_unix_nano, record.time_unix_nano)) AS Timestamp,
    id_text(record.trace_id) AS TraceId,
    id_text(record.span_id) AS SpanId,
    toUInt8(bitAnd(record.flags, 255)),
    record.severity_text AS SeverityText,
    toUInt8(bitAnd(record.severity_number, 255)),
    service AS ServiceName,
    value_text(record.body) AS Body,
    resource_schema_url,
    resource,
    scope_schema_url,
    scope_name,
    scope_version,
    scope,
    to_map(pairs(record.attributes)) AS LogAttributes,
    record.event_name AS EventName
FROM
(
    SELECT
        resource,
        service,
        resource_schema_url,
        scope_logs.schema_url AS scope_schema_url,
        scope_logs.scope.name AS scope_name,
        scope_logs.scope.version AS scope_version,
        to_map(pairs(scope_logs.scope.attributes)) AS scope,
        arrayJoin(scope_logs.log_records) AS record
    FROM
    (
        -- Rendered once a resource, not once a record.
        SELECT
            to_map(resource_pairs) AS resource,
            service_name(resource_pairs) AS service,
            resource_schema_url,
            arrayJoin(scopes) AS scope_logs
        FROM
        (
            SELECT
                pairs(resource_logs.resource.attributes) AS resource_pairs,
                resource_logs.schema_url AS resource_schema_url,
                resource_logs.scope_logs AS scopes
            FROM (SELECT arrayJoin(resource_logs) AS resource_logs FROM {source})
        )
    )
)
