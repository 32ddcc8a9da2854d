// Markdown as DOM nodes. What a model writes is never parsed as HTML: every word becomes a text node, and the only
// attributes ever set are a link's href, http, https or mailto alone, and its rel and target.
// Known: headings, paragraphs, lists, quotes, fenced code, tables, rules; bold, italics, code, links. Else it is text.

const SAFE_LINK = /^(https?:\/\/|mailto:)[^\s\u0000-\u001f]+$/i;
// every repetition is bounded, so that no text takes long
const INLINE = /(`{1,9})([\s\S]{0,2000}?[^`])\1(?!`)|\*\*(?=\S)([\s\S]{0,2000}?\S)\*\*|__(?=\S)([\s\S]{0,2000}?\S)__|\*(?=[^\s*])([^*\n]{0,999}[^\s*])\*|\[([^\]\n]{1,500})\]\(([^)\s]{1,2000})\)/;
const LONGEST = 999; // of a line that may be more than text
const DEEPEST = 8; // nesting that a person can still read

export function render(text) {
  const fragment = document.createDocumentFragment();
  blocks(text.split("\n"), fragment, 0);
  return fragment;
}

function element(name, parent) {
  return parent.appendChild(document.createElement(name));
}

function blocks(lines, parent, depth) {
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    const fence = line.match(/^\s*(`{3,}|~{3,})\s*([\w+#.-]*)/);
    const short = line.length <= LONGEST;
    const heading = short && line.match(/^(#{1,6})\s(.*?)\s*#*$/);
    if (!line.trim()) at += 1;
    else if (fence) at = code(lines, at, fence[1], parent);
    else if (heading) {
      inline(heading[2].trim(), element(`h${Math.min(heading[1].length + 1, 4)}`, parent), depth);
      at += 1;
    } else if (short && /^\s*([-*_])(\s*\1){2,}\s*$/.test(line)) {
      element("hr", parent);
      at += 1;
    } else if (/^\s*>/.test(line) && depth < DEEPEST) at = quote(lines, at, parent, depth);
    else if (item(line) && depth < DEEPEST) at = list(lines, at, parent, depth);
    else if (short && line.includes("|") && underlines(lines[at + 1])) at = table(lines, at, parent, depth);
    else at = paragraph(lines, at, parent, depth);
  }
}

function underlines(line = "") {
  return line.length <= LONGEST && /^\|?(\s*:?-+:?\s*\|)*\s*:?-+:?\s*\|?$/.test(line.trim());
}

function code(lines, at, mark, parent) {
  const body = [];
  at += 1;
  while (at < lines.length && !lines[at].trim().startsWith(mark)) body.push(lines[at++]);
  element("code", element("pre", parent)).textContent = body.join("\n");
  return at + 1;
}

function quote(lines, at, parent, depth) {
  const body = [];
  while (at < lines.length && /^\s*>/.test(lines[at])) body.push(lines[at++].replace(/^\s*> ?/, ""));
  blocks(body, element("blockquote", parent), depth + 1);
  return at;
}

function item(line) {
  return line.match(/^(\s*)(?:([-*+])|(\d{1,9})[.)])\s+(.*)$/);
}

function list(lines, at, parent, depth) {
  const first = item(lines[at]);
  const node = element(first[2] ? "ul" : "ol", parent);
  if (first[3] && first[3] !== "1") node.start = Number(first[3]);
  while (at < lines.length) {
    const found = item(lines[at]);
    if (!found || found[1].length !== first[1].length || !found[2] !== !first[2]) break;
    const body = [found[4]];
    at += 1;
    while (at < lines.length) {
      const next = item(lines[at]);
      const inside = lines[at].search(/\S/) > first[1].length;
      const gap = !lines[at].trim() && (lines[at + 1] ?? "").search(/\S/) > first[1].length;
      if (!inside && !gap) break;
      if (next && next[1].length <= first[1].length) break;
      body.push(lines[at].slice(Math.min(first[1].length + 2, Math.max(0, lines[at].search(/\S/)))));
      at += 1;
    }
    const child = element("li", node);
    if (body.length === 1) inline(body[0], child, depth);
    else blocks(body, child, depth + 1);
    if (!(lines[at] ?? "").trim() && item(lines[at + 1] ?? "")?.[1].length === first[1].length) at += 1;
  }
  return at;
}

function table(lines, at, parent, depth) {
  const node = element("table", parent);
  const row = (line, kind) => {
    const cells = line.trim().replace(/^\||\|$/g, "").split("|");
    const tr = element("tr", node);
    for (const cell of cells) inline(cell.trim(), element(kind, tr), depth);
  };
  row(lines[at], "th");
  for (at += 2; at < lines.length && lines[at].includes("|"); at += 1) row(lines[at], "td");
  return at;
}

function paragraph(lines, at, parent, depth) {
  const body = [lines[at++]];
  const ends = (line) => !line.trim() || /^\s*(`{3,}|~{3,})|^#{1,6}\s|^\s*>/.test(line) || (depth < DEEPEST && item(line));
  while (at < lines.length && !ends(lines[at])) body.push(lines[at++]);
  const node = element("p", parent);
  body.forEach((line, number) => {
    if (number) element("br", node);
    inline(line, node, depth);
  });
  return at;
}

function inline(text, parent, depth) {
  while (text) {
    const found = depth > DEEPEST ? null : text.match(INLINE);
    if (!found) break;
    if (found.index) parent.append(text.slice(0, found.index));
    const [whole, , ticked, bold, boldToo, italic, label, link] = found;
    if (ticked !== undefined) element("code", parent).textContent = ticked;
    else if (bold ?? boldToo) inline(bold ?? boldToo, element("strong", parent), depth + 1);
    else if (italic) inline(italic, element("em", parent), depth + 1);
    else if (SAFE_LINK.test(link)) {
      const node = element("a", parent);
      node.href = link;
      node.rel = "noopener noreferrer nofollow";
      node.target = "_blank";
      inline(label, node, depth + 1);
    } else parent.append(whole);
    text = text.slice(found.index + whole.length);
  }
  if (text) parent.append(text);
}
