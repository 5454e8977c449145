// Every kind of call that the gateway serves, made with the official client; prints what came back as one JSON object.
//
//   node ask.mjs BASE_URL
import OpenAI, { toFile } from 'openai';

const client = new OpenAI({ baseURL: process.argv[2], apiKey: 'sk-upstream', maxRetries: 0, timeout: 20_000 });
const messages = [
  { role: 'system', content: 'You count – in German.' },
  { role: 'user', content: '2+2?' },
];
const named = (name) => ({ type: 'function', function: { name, parameters: { type: 'object' } } });
const tools = [named('add'), named('sub')];
const schema = { type: 'json_schema', json_schema: { name: 'sum', strict: true, schema: { type: 'object' } } };
const all = async (stream) => {
  const found = [];
  for await (const chunk of await stream) found.push(chunk);
  return found;
};
const failure = async (promise) => {
  try {
    await promise;
  } catch (error) {
    const { status, code, param, type, requestID, message } = error;
    return { name: error.constructor.name, status, code, param, type, requestID, message };
  }
  throw new Error('it was not refused');
};
const chat = client.chat.completions;

const scenarios = {
  chat: () => chat.create({ model: 'm', messages, temperature: 0.5 }),
  chatStream: () => all(chat.create({ model: 'm', messages, stream: true, stream_options: { include_usage: true } })),
  chatComments: () => all(chat.create({ model: 'commented', messages, stream: true })),
  chatTools: () => chat.create({ model: 'm', messages, tools }),
  chatToolsStream: () => all(chat.create({ model: 'm', messages, tools, stream: true })),
  chatHelper: async () => {
    const stream = chat.stream({ model: 'm', messages, tools });
    return [await all(stream), await stream.finalChatCompletion()];
  },
  chatParse: () => chat.parse({ model: 'm', messages, response_format: schema }),
  chatMany: () => chat.create({ model: 'm', messages, n: 2, logprobs: true, top_logprobs: 1 }),
  responses: () => client.responses.create({ model: 'm', input: '2+2?' }),
  responsesStream: () => all(client.responses.create({ model: 'm', input: '2+2?', stream: true })),
  completions: () => client.completions.create({ model: 'm', prompt: '2+2=' }),
  completionsStream: () => all(client.completions.create({ model: 'm', prompt: '2+2=', stream: true })),
  embeddings: () => client.embeddings.create({ model: 'm', input: ['eins', 'zwei'] }),
  models: async () => (await all(client.models.list())).map((model) => model.id),
  upload: async () => {
    const file = await toFile(new Uint8Array(40_000).fill(255), 'batch.jsonl');
    const { bytes, path, type } = await client.files.create({ file, purpose: 'batch' });
    return { bytes, path, type };
  },
  raw: async () => {
    const { data, response, request_id } = await chat.create({ model: 'm', messages }).withResponse();
    return [data, response.status, request_id, response.headers.get('content-type')];
  },
  badRequest: () => failure(chat.create({ model: 'status-400', messages })),
  tooMany: () => failure(chat.create({ model: 'status-429', messages, stream: true })),
  serverError: () => failure(client.responses.create({ model: 'status-500', input: 'x' })),
  errorInStream: () => failure(all(chat.create({ model: 'error-event', messages, stream: true }))),
};

const found = {};
for (const [name, ask] of Object.entries(scenarios)) found[name] = await ask();
console.log(JSON.stringify(found));
