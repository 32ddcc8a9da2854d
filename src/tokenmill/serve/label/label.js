// Two answers side by side; keys 1, 2, T (tie), S (skip). Whatever came from a model is put in as text, never as HTML.

const part = (id) => document.getElementById(id);
const KEYS = { 1: "left", 2: "right", t: "tie", s: "skip" };
let item = null;
let shownAt = 0;
let busy = false;

function write(element, said) {
  element.replaceChildren();
  const messages = typeof said === "string" ? [{ content: said }] : said;
  for (const message of messages) {
    if (message.role) {
      const role = document.createElement("span");
      role.className = "role";
      role.textContent = message.role;
      element.append(role);
    }
    const content = message.content ?? "";
    const text = typeof content === "string" ? content : JSON.stringify(content);
    if (text || !message.tool_calls) element.append(document.createTextNode(`${text}\n`));
    for (const call of message.tool_calls ?? []) {
      const { name, arguments: given } = call.function ?? call;
      const shown = document.createElement("code");
      shown.textContent = `${name}(${typeof given === "string" ? given : JSON.stringify(given)})`;
      element.append(shown, document.createTextNode("\n"));
    }
  }
  element.scrollTop = 0;
}

function notice(text) {
  part("notice").textContent = text;
  part("notice").hidden = !text;
}

async function ask(path, body) {
  const how = body ? { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) } : {};
  const reply = await fetch(path, how);
  if (!reply.ok) throw new Error(`the program answered ${reply.status}`);
  return reply.json();
}

async function next() {
  const found = await ask(`next?rater=${encodeURIComponent(part("rater").value.trim())}`);
  item = found.item;
  part("progress").max = found.of;
  part("progress").value = found.done;
  part("count").textContent = `${found.done} of ${found.of}`;
  part("item").hidden = item === null;
  if (item === null) {
    notice("All done. Thank you!");
    return;
  }
  write(part("prompt"), item.prompt);
  write(part("left"), item.left);
  write(part("right"), item.right);
  shownAt = performance.now();
}

async function say(verdict) {
  if (item === null || busy) return;
  busy = true; // a key held down must not judge the next item too
  try {
    const seconds = (performance.now() - shownAt) / 1000;
    await ask("verdict", { item: item.id, rater: part("rater").value.trim(), verdict, seconds });
    notice("");
    await next();
  } catch (error) {
    notice(`Not saved: ${error.message}. Try again.`);
  } finally {
    busy = false;
  }
}

part("who").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!part("rater").value.trim()) return;
  part("who").hidden = true;
  next().catch((error) => {
    part("who").hidden = false;
    notice(error.message);
  });
});
for (const button of document.querySelectorAll("[data-verdict]")) {
  button.addEventListener("click", () => say(button.dataset.verdict));
}
document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "INPUT") return;
  const verdict = KEYS[event.key.toLowerCase()];
  if (verdict) {
    event.preventDefault();
    say(verdict);
  }
});
