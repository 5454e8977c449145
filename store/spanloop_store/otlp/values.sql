-- How an OTLP value becomes text: pcommon.Value.AsString of the OpenTelemetry Collector (strings as they are, arrays
-- and kvlists as JSON with sorted keys and no HTML escapes). Lambdas take columns, not tuples: half the time.
d -> multiIf(
    isNaN(d), 'json: unsupported value: NaN',
    isInfinite(d), if(d > 0, 'json: unsupported value: +Inf', 'json: unsupported value: -Inf'),
    abs(d) >= 1e21, replaceOne(toString(d), 'e', 'e+'),  -- Go writes the sign of an exponent, the engine only a minus
    toString(d)) AS double_text,
(s, b, i, d, a, kv, y) -> multiIf(
    isNotNull(s), toJSONString(assumeNotNull(s)),
    isNotNull(i), toString(assumeNotNull(i)),
    isNotNull(b), if(assumeNotNull(b), 'true', 'false'),
    isNotNull(d), double_text(assumeNotNull(d)),
    isNotNull(y), if(empty(assumeNotNull(y)), 'null', concat('"', base64Encode(assumeNotNull(y)), '"')),
    isNotNull(a), '[]',
    isNotNull(kv), '{}',
    'null') AS inner_json,
v -> arrayMap(
    (s, b, i, d, a, kv, y) -> inner_json(s, b, i, d, a, kv, y),
    v.string_value, v.bool_value, v.int_value, v.double_value, v.array_value, v.kvlist_value, v.bytes_value) AS inner_jsons,
a -> concat('[', arrayStringConcat(inner_jsons(a[1].values), ','), ']') AS array_json,
kv -> concat('{', arrayStringConcat(
    arrayMap(p -> concat(toJSONString(p.1), ':', p.2),
        arraySort(p -> p.1, arrayZip(kv[1].values.key, inner_jsons(kv[1].values.value)))), ','), '}') AS kvlist_json,
(s, b, i, d, a, kv, y) -> multiIf(
    isNotNull(s), assumeNotNull(s),
    isNotNull(i), toString(assumeNotNull(i)),
    isNotNull(b), if(assumeNotNull(b), 'true', 'false'),
    isNotNull(d), double_text(assumeNotNull(d)),
    notEmpty(a), array_json(a),
    notEmpty(kv), kvlist_json(kv),
    isNotNull(y), base64Encode(assumeNotNull(y)),
    '') AS text,
v -> text(v.string_value, v.bool_value, v.int_value, v.double_value, v.array_value, v.kvlist_value, v.bytes_value) AS value_text,
k -> arrayMap(
    (key, s, b, i, d, a, kv, y) -> (key, text(s, b, i, d, a, kv, y)),
    k.key, k.value.string_value, k.value.bool_value, k.value.int_value, k.value.double_value,
    k.value.array_value, k.value.kvlist_value, k.value.bytes_value) AS pairs,
-- The exporter sorts keys; equal keys are both kept, in the order of their values.
p -> CAST(arraySort(p), 'Map(LowCardinality(String), String)') AS to_map,
p -> arrayFirst(x -> x.1 = 'service.name', p).2 AS service_name,
-- An id of zeros is no id.
i -> if(i IN ('', unhex('0000000000000000'), unhex('00000000000000000000000000000000')), '', lower(hex(i))) AS id_text,
t -> fromUnixTimestamp64Nano(reinterpretAsInt64(t)) AS nano_time
