        -- Conditions and ids for a multiIf: the session that a span of any kind names.
        SpanAttributes['session.id'] != '', SpanAttributes['session.id'],
        -- Agent Framework has here what a call of the Responses API goes on from, another one for each.
        SpanAttributes['gen_ai.conversation.id'] != '' AND NOT startsWith(SpanAttributes['gen_ai.conversation.id'], 'resp_'),
        SpanAttributes['gen_ai.conversation.id'],
