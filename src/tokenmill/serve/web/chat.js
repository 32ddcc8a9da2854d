// The chat: asks /v1/chat/completions, streams the answer, keeps the conversation in this browser and nowhere else.

import { render } from "/web/markdown.js";

const $ = (id) => document.getElementById(id);
const SETTINGS = ["system", "temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"];
// An answer that only repeats itself ends, unless a limit of tokens is set: as for `tokenmill run` (engine/repetition.py).
const LOOPS = { max_pattern_size: 256, min_pattern_size: 32, min_count: 8 };
const STORED = "tokenmill.chat";
const state = { messages: [], settings: {}, model: "", key: "" };
let running = null; // the AbortController of the answer that is being written

// --- what is kept

function load() {
  try {
    const kept = JSON.parse(localStorage.getItem(STORED) ?? "{}");
    const texts = (kept.messages ?? []).filter((m) => ["user", "assistant"].includes(m.role) && typeof m.content === "string");
    Object.assign(state, { messages: texts, settings: kept.settings ?? {}, model: kept.model ?? "" });
  } catch { /* what cannot be read is not kept */ }
  state.key = read(sessionStorage) || read(localStorage);
}

function read(storage) {
  try { return storage.getItem("tokenmill.key") ?? ""; } catch { return ""; }
}

function save() {
  const { messages, settings, model } = state;
  try { localStorage.setItem(STORED, JSON.stringify({ messages, settings, model })); } catch (error) { notice(`The conversation cannot be kept: ${error.message}`); }
}

// --- the server

async function ask(path, options = {}) {
  const headers = { ...(options.body ? { "content-type": "application/json" } : {}), ...(state.key ? { authorization: `Bearer ${state.key}` } : {}) };
  const reply = await fetch(path, { ...options, headers });
  if (reply.ok) return reply;
  if (reply.status === 401) {
    showKeys();
    throw new Error(state.key ? "The server does not know this key." : "");
  }
  const wait = reply.headers.get("retry-after");
  const told = await reply.json().catch(() => ({}));
  throw new Error((told.error?.message ?? told.error ?? `the server answered ${reply.status}`) + (wait ? ` (try again in ${wait} s)` : ""));
}

async function models() {
  const { data } = await (await ask("/v1/models")).json();
  const names = data.map((model) => model.id);
  const chosen = names.includes(state.model) ? state.model : names[0] ?? "";
  $("model").replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
  state.model = chosen;
  notice(names.length ? "" : "There are no models yet. Get one with: tokenmill pull smollm2:135m");
}

function request() {
  const { system, ...numbers } = state.settings;
  const body = { model: state.model, messages: [...state.messages], stream: true, stream_options: { include_usage: true } };
  if (system) body.messages.unshift({ role: "system", content: system });
  for (const [name, value] of Object.entries(numbers)) if (value !== "") body[name] = Number(value);
  if (!body.max_tokens) body.repetition_detection = LOOPS;
  return JSON.stringify(body);
}

async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ")) continue; // a ping
      if (part === "data: [DONE]") return;
      const event = JSON.parse(part.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

// --- an answer

async function answer() {
  const message = { role: "assistant", content: "", thinking: "" };
  const node = article(message);
  const started = performance.now();
  let first = 0, usage = null, reason = "", drawn = 0;
  running = new AbortController();
  busy(true);
  node.body.classList.add("writing");
  try {
    const reply = await ask("/v1/chat/completions", { method: "POST", body: request(), signal: running.signal });
    for await (const event of events(reply)) {
      usage = event.usage ?? usage;
      const choice = event.choices[0];
      reason = choice?.finish_reason ?? reason;
      const { content = "", reasoning = "" } = choice?.delta ?? {};
      if (!content && !reasoning) continue;
      first ||= performance.now();
      message.content += content;
      message.thinking += reasoning;
      if (performance.now() - drawn > 60) {
        draw(node, message);
        drawn = performance.now();
      }
    }
    figures(started, first, usage, reason);
  } catch (error) {
    if (error.name !== "AbortError" && error.message) fail(error);
  }
  node.body.classList.remove("writing");
  running = null;
  busy(false);
  if (message.content || message.thinking) {
    draw(node, message);
    state.messages.push({ role: "assistant", content: message.content });
    tools(node, message);
  } else node.remove();
  save();
}

function figures(started, first, usage, reason) {
  if (!usage) return;
  const seconds = (performance.now() - first) / 1000;
  const rate = usage.completion_tokens > 1 && seconds > 0 ? `${((usage.completion_tokens - 1) / seconds).toFixed(1)} tokens/s · ` : "";
  const cached = usage.prompt_tokens_details?.cached_tokens ? ` (${usage.prompt_tokens_details.cached_tokens} cached)` : "";
  const wait = first ? `first word after ${((first - started) / 1000).toFixed(2)} s · ` : "";
  const ends = { length: " · cut at the limit of tokens", repetition: " · ended, for it only repeated itself" };
  $("figures").textContent = `${rate}${wait}${usage.prompt_tokens} tokens in${cached}, ${usage.completion_tokens} out${ends[reason] ?? ""}`;
}

// --- what is seen

function article(message) {
  document.querySelector(".hint")?.remove();
  const node = document.createElement("article");
  node.className = message.role;
  const body = node.appendChild(document.createElement("div"));
  $("conversation").append(node);
  const parts = { node, body, remove: () => node.remove() };
  if (message.content) draw(parts, message);
  if (message.content && message.role === "assistant") tools(parts, message);
  return parts;
}

function atEnd() {
  const main = $("conversation");
  return main.scrollHeight - main.scrollTop - main.clientHeight < 80;
}

function toEnd() { $("conversation").scrollTop = $("conversation").scrollHeight; }

function draw({ node, body }, message) {
  const following = atEnd();
  if (message.role === "user") body.textContent = message.content;
  else {
    const open = node.querySelector("details")?.open ?? !message.content;
    body.replaceChildren(render(message.content));
    if (message.thinking) body.prepend(thinking(message.thinking, open));
    for (const pre of body.querySelectorAll("pre")) pre.append(copier(() => pre.querySelector("code").textContent));
  }
  if (following) toEnd();
}

function thinking(text, open) {
  const node = document.createElement("details");
  node.open = open;
  const summary = node.appendChild(document.createElement("summary"));
  summary.textContent = "Thinking";
  node.append(render(text));
  return node;
}

function copier(text) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch { button.textContent = "Not allowed"; }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  return button;
}

function tools({ node }, message) {
  const row = document.createElement("div");
  row.className = "tools";
  row.append(copier(() => message.content));
  const following = atEnd();
  node.append(row);
  if (following) toEnd();
}

function fail(error) {
  const node = document.createElement("article");
  node.className = "error";
  node.setAttribute("role", "alert");
  node.textContent = error.message === "Failed to fetch" ? "The server does not answer." : error.message;
  const again = document.createElement("button");
  again.type = "button";
  again.textContent = "Try again";
  again.addEventListener("click", () => { if (!running) { node.remove(); answer(); } });
  node.append(" ", again);
  $("conversation").append(node);
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function busy(is) {
  $("send").hidden = is;
  $("stop").hidden = !is;
  $("model").disabled = $("fresh").disabled = is;
}

function showKeys() {
  $("keys").hidden = false;
  $("key").focus();
}

function show() {
  $("conversation").replaceChildren();
  for (const message of state.messages) article(message);
  if (!state.messages.length) {
    const hint = $("conversation").appendChild(document.createElement("p"));
    hint.className = "hint";
    hint.textContent = "Ask the model something. The conversation stays in this browser.";
  }
  toEnd();
}

// --- what people do

function send() {
  const text = $("prompt").value.trim();
  if (!text || running) return;
  if (!state.model) return notice("Choose a model first.");
  document.querySelectorAll("article.error").forEach((node) => node.remove());
  const message = { role: "user", content: text };
  if (state.messages.at(-1)?.role === "user") { // the last one was never answered
    state.messages.pop();
    [...document.querySelectorAll("article.user")].at(-1)?.remove();
  }
  state.messages.push(message);
  article(message);
  $("prompt").value = "";
  grow();
  save();
  answer();
}

function stop() {
  running?.abort();
}

function fresh() {
  stop();
  state.messages = [];
  $("figures").textContent = "";
  save();
  show();
  $("prompt").focus();
}

function grow() {
  $("prompt").style.height = "auto";
  $("prompt").style.height = `${Math.min($("prompt").scrollHeight + 2, innerHeight * 0.4)}px`;
}

async function useKey(event) {
  event.preventDefault();
  state.key = $("key").value.trim();
  try {
    sessionStorage.setItem("tokenmill.key", state.key);
    if ($("keep").checked) localStorage.setItem("tokenmill.key", state.key);
    else localStorage.removeItem("tokenmill.key");
  } catch { /* then it lasts as long as the page */ }
  $("keys").hidden = true;
  $("key").value = "";
  await begin();
}

async function begin() {
  try { await models(); } catch (error) { notice(error.message); }
}

$("ask").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("keys").addEventListener("submit", useKey);
$("stop").addEventListener("click", stop);
$("fresh").addEventListener("click", fresh);
$("model").addEventListener("change", () => { state.model = $("model").value; save(); });
$("prompt").addEventListener("input", grow);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
  if (event.key.toLowerCase() === "o" && event.ctrlKey && event.shiftKey) { event.preventDefault(); fresh(); }
});
for (const name of SETTINGS) {
  $(name).addEventListener("input", () => {
    if (!$(name).checkValidity()) return $(name).reportValidity();
    state.settings[name] = $(name).value;
    save();
  });
}

load();
for (const name of SETTINGS) $(name).value = state.settings[name] ?? "";
show();
begin();
