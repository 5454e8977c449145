    SpanAttributes['gen_ai.input.messages'] AS input_json,
    SpanAttributes['gen_ai.output.messages'] AS output_json,
    SpanAttributes['gen_ai.system_instructions'] AS instructions,
    SpanAttributes['gen_ai.tool.definitions'] AS tools,
    (startsWith(instructions, '[') AND isValidJSON(instructions)) AS instructions_are_parts,
    if(instructions = '', [], [concat('{"role":"system","parts":', if(instructions_are_parts, instructions,
        concat('[{"type":"text","content":', toJSONString(instructions), '}]')), '}')]) AS system,
    arrayConcat(system, JSONExtractArrayRaw(input_json)) AS input,
    JSONExtractArrayRaw(output_json) AS output,
    -- The engine's JSON reader turns integers above 64 bits into text: such arrays are sliced without it.
    if(match(input_json, '[0-9]{20}'), input_json, '') AS input_verbatim,
    if(match(output_json, '[0-9]{20}'), output_json, '') AS output_verbatim,
    input_json != '' AS has_content,
    ((input_json != '' AND NOT isValidJSON(input_json)) OR (output_json != '' AND NOT isValidJSON(output_json))
        OR (tools != '' AND NOT isValidJSON(tools))) AS invalid
