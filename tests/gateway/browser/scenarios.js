// What the browser test does, with connect-web as its users have it. Every function returns plain values.

import { createFileRegistry, fromBinary } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcWebTransport } from "@connectrpc/connect-web";

const TRANSPORTS = {
  "connect json": (baseUrl) => createConnectTransport({ baseUrl }),
  "connect binary": (baseUrl) => createConnectTransport({ baseUrl, useBinaryFormat: true }),
  "grpc-web binary": (baseUrl) => createGrpcWebTransport({ baseUrl }),
  "grpc-web json": (baseUrl) => createGrpcWebTransport({ baseUrl, useBinaryFormat: false }),
};
let registry;

async function client(form, url) {
  if (!registry) {
    const described = await (await fetch("descriptors.binpb")).arrayBuffer();
    registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, new Uint8Array(described)));
  }
  return createClient(registry.getService("gruve.v1.GenerationService"), TRANSPORTS[form](url));
}

// Keeps the tokens of a stream by position, without those that a control has taken back.
function keep(tokens, message) {
  if (message.message.case === "controlApplied") {
    for (const at of Object.keys(tokens)) if (Number(at) >= Number(message.message.value.position)) delete tokens[at];
    return;
  }
  const { position, tokenIds } = message.message.value;
  tokenIds.forEach((token, i) => { tokens[Number(position) + i] = token; });
}

const source = (fields, more = {}) => ({ source: { case: "model", value: "tiny" }, prompt: { case: "text", value: "To be" },
  sampling: { seed: BigInt(fields.seed) }, maxTokens: fields.maxTokens, ...more });

async function streamed(form, url, fields) {
  const tokens = [];
  let text = "";
  for await (const message of (await client(form, url)).generate(source(fields))) {
    tokens.push(...message.tokenIds);
    text += message.text;
  }
  return { tokens, text };
}

// Five tokens, a rewind by two with another seed, and the rest.
async function steered(form, url, fields) {
  const calls = await client(form, url);
  const tokens = {};
  let start, applied;
  for await (const message of calls.startConversation({ generate: source(fields), credit: 5 })) {
    keep(tokens, message);
    if (message.message.case === "tokens" && message.message.value.start) start = message.message.value.start;
    if (!applied && Object.keys(tokens).length === 5) {
      const control = (value) => calls.control({ generationId: start.generationId, control: { message: value } });
      applied = await control({ case: "rewind", value: { toPosition: start.startPosition + 3n, seed: 8n } });
      await control({ case: "grant", value: { tokens: 1000 } });
    }
  }
  return { tokens: Object.values(tokens), position: Number(applied.applied.position) };
}

// Cancels a stream of a session after some tokens, and then reads the rest of the generation.
async function cancelledAndResumed(form, url, fields) {
  const calls = await client(form, url);
  const tokens = {};
  const request = source(fields, { source: { case: "newSession", value: { model: "tiny" } }, generationId: "g",
    maxTokensPerSecond: 100 });
  const abort = new AbortController();
  let session, next, code;
  try {
    for await (const message of calls.generate(request, { signal: abort.signal })) {
      if (message.start) session = message.start.sessionId;
      message.tokenIds.forEach((token, i) => { tokens[Number(message.position) + i] = token; });
      next = message.position + BigInt(message.tokenIds.length);
      if (Object.keys(tokens).length >= 5) abort.abort();
    }
  } catch (error) {
    code = Code[ConnectError.from(error).code];
  }
  const before = Object.keys(tokens).length;
  const again = source(fields, { source: { case: "sessionId", value: session }, generationId: "g", fromPosition: next });
  for await (const message of calls.generate(again)) {
    message.tokenIds.forEach((token, i) => { tokens[Number(message.position) + i] = token; });
  }
  return { code, before, tokens: Object.values(tokens) };
}

async function refused(form, url) {
  try {
    await (await client(form, url)).control({ generationId: "none", control: { message: { case: "pause", value: {} } } });
  } catch (error) {
    const failure = ConnectError.from(error);
    const details = failure.details.map((detail) => detail.type ?? detail.desc.typeName);
    return { code: Code[failure.code], message: failure.rawMessage, details };
  }
  return {};
}

window.scenarios = { streamed, steered, cancelledAndResumed, refused };
