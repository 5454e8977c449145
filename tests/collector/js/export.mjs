// Two spans through one of the official exporters, batched; exits 1 if the exporter was refused.
//
//   node export.mjs proto|http|grpc ADDRESS SERVICE [COMPRESSION]
import { context, SpanKind, SpanStatusCode, trace } from '@opentelemetry/api';
import { resourceFromAttributes } from '@opentelemetry/resources';
import { BatchSpanProcessor, NodeTracerProvider } from '@opentelemetry/sdk-trace-node';

const [protocol, url, service, compression = 'none'] = process.argv.slice(2);
const { OTLPTraceExporter } = await import(`@opentelemetry/exporter-trace-otlp-${protocol}`);
const exporter = new OTLPTraceExporter({ url, compression });

let refused = false;
const send = exporter.export.bind(exporter);
exporter.export = (spans, done) =>
  send(spans, (result) => {
    if (result.code !== 0) {
      refused = true;
      console.error(result.error);
    }
    done(result);
  });

const provider = new NodeTracerProvider({
  resource: resourceFromAttributes({ 'service.name': service }),
  spanProcessors: [new BatchSpanProcessor(exporter)],
});
const tracer = provider.getTracer('spanloop-test', '1.2');
const parent = tracer.startSpan('parent', {
  kind: SpanKind.CLIENT,
  attributes: { text: 'héllo', number: 3, ratio: 0.5, flag: true, list: ['a', 'b'] },
});
const child = tracer.startSpan('child', {}, trace.setSpan(context.active(), parent));
child.recordException(new TypeError('broken'));
child.setStatus({ code: SpanStatusCode.ERROR, message: 'broken' });
child.end();
parent.end();
await provider.shutdown();
console.log(parent.spanContext().traceId);
process.exitCode = refused ? 1 : 0;
