-- One row a request: how many rows it holds, and whether it holds a value that stops {signal}.sql. {source} reads only
-- what this needs; a value's members here: 1 double, 2 array, 3 kvlist. {values} are the lambdas of values.sql.
WITH
{values},
v -> arrayExists((d, a, m) -> double_hard(d) OR array_hard(a) OR kvlist_hard(m), v.1, v.2, v.3) AS attributes_hard
SELECT {rows} AS rows, {hard} AS hard FROM {source}
