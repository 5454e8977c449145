// Preload for agents on Node that use the Vercel AI SDK 5 or 6: starts OpenTelemetry and switches the SDK's telemetry on.
//
//     node --import ./vercel-ai.mjs agent.mjs
//
// The SDK asks for `experimental_telemetry: { isEnabled: true }` at every call and knows no variable for it; here that is the
// default, and what a call says itself stands. All the rest is OTEL_… variables, as everywhere.
import { createRequire, register } from "node:module";
import { pathToFileURL } from "node:url";

import { NodeSDK } from "@opentelemetry/sdk-node";

const defaults = {
  // The SDK's 128 drops attributes of long conversations.
  OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT: "4096",
  OTEL_BSP_SCHEDULE_DELAY: "1000", // milliseconds; what is not sent yet is lost when the process is killed
  OTEL_METRICS_EXPORTER: "none",
  OTEL_LOGS_EXPORTER: "none",
};
for (const [name, value] of Object.entries(defaults)) process.env[name] ||= value;

// From where OpenTelemetry has it, whether or not the project lists it.
const nested = createRequire(createRequire(import.meta.url).resolve("@opentelemetry/instrumentation"));
register("import-in-the-middle/hook.mjs", pathToFileURL(nested.resolve("@opentelemetry/instrumentation")));
const { Hook: ImportHook } = nested("import-in-the-middle");
const { Hook: RequireHook } = nested("require-in-the-middle");

const enabled = (options = {}) => ({
  ...options,
  experimental_telemetry: { isEnabled: true, ...options.experimental_telemetry },
});
const calls = ["generateText", "streamText", "generateObject", "streamObject", "embed", "embedMany", "rerank"];
const agents = ["ToolLoopAgent", "Experimental_Agent"];

function switchedOn(exported) {
  const changed = {};
  for (const name of calls.filter((name) => exported[name])) {
    const original = exported[name];
    changed[name] = (options) => original(enabled(options));
  }
  for (const name of agents.filter((name) => exported[name])) {
    changed[name] = class extends exported[name] {
      constructor(options) {
        super(enabled(options));
      }
    };
  }
  return changed;
}

// What is imported can only be changed in place; what is required has getters, and is replaced as a whole.
new ImportHook(["ai"], (exported) => void Object.assign(exported, switchedOn(exported)));
new RequireHook(["ai"], (exported) => ({ ...exported, ...switchedOn(exported) }));

const sdk = new NodeSDK();
sdk.start();

let stopping;
const stop = () => (stopping ??= sdk.shutdown().catch((error) => console.error("telemetry:", error.message)));
process.once("beforeExit", stop);
process.once("SIGTERM", async () => {
  await stop();
  // Ours is gone. The agent's own, if it has one, ends the process its way; else die as if nobody had handled it.
  if (process.listenerCount("SIGTERM") === 0) process.kill(process.pid, "SIGTERM");
});
