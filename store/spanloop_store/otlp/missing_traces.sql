-- {insert} {select} without the spans that the table has: {identity} is a span's, {within} holds all of their times.
{insert}
SELECT * FROM
(
{select}
)
WHERE {identity} NOT IN (SELECT {identity} FROM otel_traces WHERE {within})
