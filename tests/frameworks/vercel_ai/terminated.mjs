// An unmodified agent on the Vercel AI SDK that handles SIGTERM itself: it has half a second to put its things away.
import { openai } from "@ai-sdk/openai";
import { generateText } from "ai";

process.on("SIGTERM", () => {
  console.log("asked to end");
  setTimeout(() => process.exit(0), 500);
});
console.log((await generateText({ model: openai.chat("m"), prompt: "How is Paris?" })).text);
process.kill(process.pid, "SIGTERM");
setInterval(() => {}, 1000);
