// The same SDK from a CommonJS program.
const { openai } = require("@ai-sdk/openai");
const { generateText } = require("ai");

generateText({ model: openai.chat("m"), prompt: "How is Paris?" }).then(({ text }) => console.log(text));
