-- One row a request: how many rows it holds, and whether it holds a value that {signal}.sql cannot render as Go would.
-- Those requests are decoded in Python. Hard is: nesting below the declared level, a key twice in a kvlist, NaN or an
-- infinity inside an array or kvlist, a control character there whose JSON escape has a letter (the engine writes \u001F,
-- Go \u001f), an array or kvlist in two pieces. {source} reads only what this needs.
WITH
s -> match(s, '[\\x0b\\x0e\\x0f\\x1a-\\x1f]') AS text_hard,
(s, a, kv, d) -> text_hard(ifNull(s, '')) OR notEmpty(ifNull(a, '')) OR notEmpty(ifNull(kv, '')) OR NOT isFinite(ifNull(d, 0)) AS inner_hard,
(a, kv) -> length(a) > 1 OR length(kv) > 1
    OR arrayExists(p -> arrayExists(v -> inner_hard(v.string_value, v.array_value, v.kvlist_value, v.double_value), p.values), a)
    OR arrayExists(p -> arrayExists(v -> text_hard(v.key) OR inner_hard(v.value.string_value, v.value.array_value, v.value.kvlist_value, v.value.double_value), p.values)
        OR length(arrayDistinct(p.values.key)) != length(p.values), kv) AS value_hard,
k -> arrayExists((a, kv) -> value_hard(a, kv), k.value.array_value, k.value.kvlist_value) AS attributes_hard
SELECT {rows} AS rows, {hard} AS hard FROM {source}
