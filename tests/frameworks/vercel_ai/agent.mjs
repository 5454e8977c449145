// An unmodified agent on the Vercel AI SDK: a tool loop by generateText, one by streamText, one by an agent class.
import { openai } from "@ai-sdk/openai";
import { generateText, stepCountIs, streamText, tool, ToolLoopAgent } from "ai";
import { z } from "zod";

const model = openai.chat("m");
const tools = {
  get_weather: tool({
    description: "The weather in a city.",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => `sunny in ${city}`,
  }),
};
const system = "You know the weather.";
const stopWhen = stepCountIs(3);

const whole = await generateText({ model, tools, system, stopWhen, prompt: "How is Paris?" });
console.log(whole.text);
const stream = streamText({ model, tools, system, stopWhen, prompt: "How is Rome?" });
let text = "";
for await (const piece of stream.textStream) text += piece;
console.log(text);
const agent = new ToolLoopAgent({ model, tools, instructions: system });
console.log((await agent.generate({ prompt: "How is Oslo?" })).text);
