-- How an OTLP value becomes text: pcommon.Value.AsString of the OpenTelemetry Collector (strings as they are, arrays
-- and kvlists as JSON with sorted keys and no HTML escapes). The reader has already turned numbers and booleans into
-- text, and only one member of a value is set.
--
-- Planning costs more than rendering where segments are small, and nothing costs it more than the name of a tuple's
-- member: the analyzer walks the whole type for each. So members are taken by their place:
--     value: 1 string, 2 int, 3 bool, 4 double, 5 bytes, 6 array, 7 kvlist; attribute: 1 key, 2 value
-- and lambdas take columns, not tuples.
--
-- A value that cannot be rendered as Go would stops the insert (throwIf); its request is then decoded in Python. Such is:
-- nesting below the declared level, bytes inside an array or kvlist, a key twice in a kvlist, NaN, an infinity or a double
-- from 1e21 on (Go writes 1e+21), a control character inside an array or kvlist whose JSON escape has a letter (the engine
-- writes \u001F, Go \u001f), an array or kvlist in two pieces.
s -> match(s, '[\\x0b\\x0e\\x0f\\x1a-\\x1f]') AS text_hard,
d -> match(ifNull(d, ''), 'n|e[^-]') AS double_hard,
v -> arrayExists(
    (s, d, y, a, m) -> text_hard(ifNull(s, '')) OR double_hard(d) OR isNotNull(y) OR isNotNull(a) OR isNotNull(m),
    v.1, v.4, v.5, v.6, v.7) AS values_hard,
a -> length(a) > 1 OR values_hard((a.1)[1]) AS array_hard,
m -> length(m) > 1 OR values_hard((m.1)[1].2) OR arrayExists(k -> text_hard(k), (m.1)[1].1)
    OR length(arrayDistinct((m.1)[1].1)) != length((m.1)[1].1) AS kvlist_hard,
(s, i, b, d) -> coalesce(toJSONString(s), i, b, d, 'null') AS inner_json,
v -> concat('[', arrayStringConcat(arrayMap((s, i, b, d) -> inner_json(s, i, b, d), v.1, v.2, v.3, v.4), ','), ']') AS array_json,
(k, v) -> concat('{', arrayStringConcat(
    arrayMap(p -> concat(toJSONString(p.1), ':', p.2),
        arraySort(p -> p.1, arrayMap((k, s, i, b, d) -> (k, inner_json(s, i, b, d)), k, v.1, v.2, v.3, v.4))), ','), '}') AS kvlist_json,
-- What every value has, what resources and spans have besides, and what is rare there.
(s, i, b, d, y, rest) -> multiIf(
    s != '', s,
    isNotNull(i), assumeNotNull(i),
    isNotNull(b), assumeNotNull(b),
    isNotNull(d), if(throwIf(double_hard(d), 'a hard double'), '', assumeNotNull(d)),
    y != '', base64Encode(y),
    rest) AS scalar_text,
(a, m) -> if(throwIf(notEmpty(a) OR notEmpty(m), 'an array or kvlist'), '', '') AS no_text,
(a, m) -> multiIf(
    notEmpty(a), if(throwIf(array_hard(a), 'a hard array'), '', array_json((a.1)[1])),
    throwIf(notEmpty(m), 'a kvlist'), '', '') AS array_text,
(a, m) -> multiIf(
    notEmpty(a), if(throwIf(array_hard(a), 'a hard array'), '', array_json((a.1)[1])),
    notEmpty(m), if(throwIf(kvlist_hard(m), 'a hard kvlist'), '', kvlist_json((m.1)[1].1, (m.1)[1].2)), '') AS any_text,
k -> arrayMap((k, s, i, b, d, y, a, m) -> (k, scalar_text(s, i, b, d, y, {span_text}(a, m))),
    k.1, k.2.1, k.2.2, k.2.3, k.2.4, k.2.5, k.2.6, k.2.7) AS pairs,
k -> arrayMap((k, s, i, b, d, y, a, m) -> (k, scalar_text(s, i, b, d, y, {event_text}(a, m))),
    k.1, k.2.1, k.2.2, k.2.3, k.2.4, k.2.5, k.2.6, k.2.7) AS event_pairs,
v -> scalar_text(v.1, v.2, v.3, v.4, v.5, any_text(v.6, v.7)) AS value_text,
-- The exporter sorts keys; equal keys are both kept, in the order of their values.
p -> CAST(arraySort(p), 'Map(LowCardinality(String), String)') AS to_map,
p -> arrayFirst(x -> x.1 = 'service.name', p).2 AS service_name,
-- An id of zeros is no id.
i -> replaceRegexpOne(lower(hex(i)), '^(0{16}|0{32})$', '') AS id_text,
t -> fromUnixTimestamp64Nano(reinterpretAsInt64(t)) AS nano_time
