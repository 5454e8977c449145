-- {insert} {select} without the days whose records the table has, all of them and as often. {identity} is what tells records
-- apart, {within} holds all of their times; records for which {anyway} are inserted whatever the table has.
{insert}
SELECT {columns} FROM
(
    SELECT *, max(copies > known_copies) OVER (PARTITION BY toDate(Timestamp)) AS lacking
    FROM
    (
        SELECT *, {identity} AS identity, count() OVER (PARTITION BY identity) AS copies FROM
        (
{select}
        )
    ) AS wanted
    LEFT JOIN
    (
        SELECT {identity} AS identity, count() AS known_copies FROM otel_logs WHERE {within} GROUP BY identity
    ) AS known USING identity
)
WHERE lacking OR {anyway}
