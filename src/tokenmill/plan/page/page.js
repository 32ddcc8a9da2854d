// Ties sliders and lists to the sheets above. Everything that is computed is computed by them; here are words and places.

const state = {};
for (const section of SECTIONS) {
  for (const choice of section.choices) Object.assign(state, choice.options[choice.value]);
  for (const slider of section.sliders) state[slider.name] = slider.value;
}

const SHEETS = { serving, costing, training, scaling };

function compute(section, changed = {}) {
  const now = { ...state, ...changed };
  return SHEETS[section.sheet](...section.arguments.map((name) => now[name]));
}

// --- numbers as words

function short(value) {
  const size = Math.abs(value);
  if (!Number.isFinite(value)) return "–";
  for (const [limit, unit] of [[1e15, "P"], [1e12, "T"], [1e9, "B"], [1e6, "M"], [1e4, "k"]])
    if (size >= limit) return size >= 999.5e15 ? Number(value.toPrecision(3)).toExponential().replace("e+", "e") : Number((value / (unit === "k" ? 1e3 : limit)).toPrecision(3)) + unit;
  return String(Number(value.toPrecision(size >= 1000 ? 4 : 3)));
}
const gigabytes = (value) => (value / 1e9 >= 100 ? Math.round(value / 1e9).toLocaleString("en") : (value / 1e9).toFixed(1)) + " GB";
const dollars = (value) => "$" + value.toLocaleString("en", { maximumFractionDigits: value < 100 ? 2 : 0 });
function time(seconds) {
  if (seconds >= 1e8) return "never";
  for (const [unit, factor] of [["days", 86400], ["h", 3600], ["min", 60], ["s", 1]])
    if (seconds >= 2 * factor || (factor === 1 && seconds >= 1)) return short(seconds / factor) + " " + unit;
  return Number((seconds * 1e3).toPrecision(3)) + " ms";
}
function parsed(text) {
  const match = /^\s*([\d.,]+(?:e[+-]?\d+)?)\s*([kmbtp]?)\s*$/i.exec(text);
  if (!match) return NaN;
  return Number(match[1].replaceAll(",", "")) * { "": 1, k: 1e3, m: 1e6, b: 1e9, t: 1e12, p: 1e15 }[match[2].toLowerCase()];
}

// --- what each section shows: (label, words, whether it is bad)

const TILES = {
  serving: (r) => [
    ["one user alone", short(r.alone) + " tokens/s"],
    ["each of them", short(r.each) + " tokens/s"],
    ["all together", short(r.together) + " tokens/s"],
    ["token to token", time(r.token_s)],
    ["prompt is read in", time(r.prompt_s)],
    ["first token at load", time(r.first_token_s)],
    ["memory holds at once", short(r.at_once), r.fits < 1],
    ["requests a second", short(r.requests)],
    ["replicas", short(r.replicas)],
  ],
  costing: (r) => [
    ["API, a month", dollars(r.api)],
    ["own, a month", dollars(r.own)],
    ["machines", short(r.machines)],
    ["break-even, tokens a day", r.break_even > 0 ? short(r.break_even) : "never", r.break_even <= 0],
    ["cheaper", r.api < r.own ? "API" : "own"],
  ],
  training: (r) => [
    ["operations", r.flops.toExponential(2)],
    ["time", time(r.days * 86400)],
    ["device hours", Math.round(r.hours).toLocaleString("en")],
    ["cost", dollars(r.usd)],
    ["checkpoint", gigabytes(r.checkpoint)],
  ],
  scaling: (r) => [
    ["Kaplan", short(r.kaplan_parameters) + " on " + short(r.kaplan_tokens)],
    ["20 tokens a parameter", short(r.rule_parameters) + " on " + short(r.rule_tokens)],
    ["the law", short(r.law_parameters) + " on " + short(r.law_tokens)],
    ["its loss", r.law_loss.toFixed(3)],
  ],
};

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== null) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// --- drawings

const CHARTS = {
  serving(place, r) {
    const parts = [["weights", r.weights], ["cache", r.cache], ["overhead", r.overhead], ["free", r.free]].filter(([, v]) => v > 0);
    const whole = Math.max(r.memory, r.memory - r.free);
    const bar = element("div", null, { class: "stack", role: "img", "aria-label": "memory" });
    const legend = element("p", null, { class: "legend" });
    parts.forEach(([name, bytes], n) => {
      const colour = name === "free" ? "" : "c" + n;
      if (colour) {
        const part = element("i", null, { class: colour });
        part.style.width = (100 * bytes) / whole + "%";
        bar.append(part);
      }
      const item = element("span", null, { class: colour });
      if (colour) item.append(element("i", null));
      item.append(element("span", name + " " + gigabytes(bytes)));
      legend.append(item);
    });
    legend.append(element("span", r.free < 0 ? "too much by " + gigabytes(-r.free) : "of " + gigabytes(r.memory)));
    place.replaceChildren(bar, legend);
  },
  costing(place, r, section) {
    const volumes = Array.from({ length: 61 }, (_, n) => 10 ** (4 + n / 10));
    const sheets = volumes.map((tokens_a_day) => compute(section, { tokens_a_day }));
    const marks = [[state.tokens_a_day, "now"]];
    if (r.break_even > 0) marks.push([r.break_even, "break-even"]);
    const chart = lines("money a month, by tokens a day", volumes, [["API", sheets.map((s) => s.api)], ["own machines", sheets.map((s) => s.own)]], marks);
    place.replaceChildren(chart, moves(section, r));
  },
  training(place) {
    place.replaceChildren();
  },
  scaling(place, r, section) {
    const budgets = Array.from({ length: 49 }, (_, n) => 10 ** (15 + n / 4));
    const sheets = budgets.map((budget) => compute(section, { budget }));
    const series = [["Kaplan", "kaplan_parameters"], ["20 tokens a parameter", "rule_parameters"], ["the law", "law_parameters"]];
    place.replaceChildren(lines("best parameters, by operations", budgets, series.map(([name, key]) => [name, sheets.map((s) => s[key])]), [[state.budget, "now"]]));
  },
};

const WIDTH = 1080, HEIGHT = 260, LEFT = 56, RIGHT = 8, TOP = 12, BOTTOM = 24;

// Curves with both axes by powers of ten.
function lines(title, xs, series, marks) {
  const NS = "http://www.w3.org/2000/svg";
  const values = series.flatMap(([, ys]) => ys).filter((y) => y > 0);
  const range = (list) => [Math.log10(Math.min(...list)), Math.log10(Math.max(...list))];
  const [x0, x1] = range(xs), [y0, y1] = range(values);
  const x = (v) => LEFT + ((Math.log10(v) - x0) / (x1 - x0)) * (WIDTH - LEFT - RIGHT);
  const y = (v) => HEIGHT - BOTTOM - ((Math.log10(v) - y0) / (y1 - y0 || 1)) * (HEIGHT - TOP - BOTTOM);
  const svg = document.createElementNS(NS, "svg");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", title);
  const add = (tag, attributes, text, parent = svg) => {
    const made = document.createElementNS(NS, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text) made.textContent = text;
    parent.append(made);
    return made;
  };
  const step = (low, high) => Math.max(1, Math.ceil((high - low) / 8));
  for (let p = Math.ceil(y0); p <= y1; p += step(y0, y1)) {
    add("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(10 ** p), y2: y(10 ** p) });
    add("text", { x: LEFT - 6, y: y(10 ** p) + 4, "text-anchor": "end" }, short(10 ** p));
  }
  for (let p = Math.ceil(x0); p <= x1; p += step(x0, x1))
    add("text", { x: Math.min(x(10 ** p), WIDTH - RIGHT - 14), y: HEIGHT - 6, "text-anchor": "middle" }, short(10 ** p));
  marks.filter(([at]) => at >= xs[0] && at <= xs[xs.length - 1]).forEach(([at, name], n) => {
    add("line", { class: "mark", x1: x(at), x2: x(at), y1: TOP, y2: HEIGHT - BOTTOM });
    const left = x(at) > WIDTH - 120;
    add("text", { x: x(at) + (left ? -5 : 5), y: TOP + 10 + 14 * n, "text-anchor": left ? "end" : "start" }, name + " " + short(at));
  });
  const caption = element("figcaption", title);
  series.forEach(([name, ys], n) => {
    const path = xs.map((v, i) => [v, ys[i]]).filter(([, v]) => v > 0).map(([v, w], i) => (i ? "L" : "M") + x(v).toFixed(1) + " " + y(w).toFixed(1)).join("");
    add("path", { d: path }, null, add("g", { class: "c" + n }));
    const item = element("span", null);
    item.append(element("i", null, { class: "c" + n }), name);
    caption.append(item);
  });
  const figure = element("figure", null);
  figure.append(caption, svg);
  return figure;
}

// What a quarter less and a quarter more of each slider does to the break-even, as factors of it.
function moves(section, now) {
  const figure = element("figure", null);
  figure.append(element("figcaption", "what moves the break-even: a quarter less, a quarter more"));
  const list = element("div", null, { class: "moves" });
  const prices = ["input_price", "output_price", "machine_price", "rent_hour", "month_fee"];
  const names = new Map([...prices.map((n) => [n, n.replace("_", " ")]), ...section.sliders.map((s) => [s.name, s.label])]);
  const found = [];
  for (const [name, label] of names) {
    if (!state[name] || name === "tokens_a_day") continue;
    const most = section.sliders.find((s) => s.name === name && !s.log)?.high ?? Infinity;
    const ends = [0.75, 1.25].map((f) => compute(section, { [name]: Math.min(most, state[name] * f) }).break_even);
    const factors = ends.map((end) => (end > 0 && now.break_even > 0 ? end / now.break_even : Infinity));
    const swing = Math.max(...factors) / Math.min(...factors);
    if (swing > 1.001) found.push([label, factors, ends, swing]);
  }
  found.sort((a, b) => b[3] - a[3]);
  const reach = (f) => (Math.max(-1, Math.min(1, Math.log(f) / Math.log(2))) + 1) * 50;
  for (const [label, factors, ends] of found) {
    const low = Math.min(...factors.map(reach)), high = Math.max(...factors.map(reach));
    const bar = element("b", null, { title: ends.map((end) => (end > 0 ? short(end) : "never")).join(" to ") });
    const part = element("i", null), middle = element("u", null);
    part.style.left = low + "%";
    part.style.width = high - low + "%";
    middle.style.left = "50%";
    bar.append(part, middle);
    list.append(element("span", label), bar);
  }
  figure.append(list);
  return now.break_even > 0 ? figure : element("p", "There is no break-even to move: own machines never cost less here.", { class: "why" });
}

// --- sliders

const position = (slider, value) => {
  const [low, high, at] = slider.log ? [slider.low, slider.high, value].map(Math.log) : [slider.low, slider.high, value];
  return (1000 * (at - low)) / (high - low);
};
const valueAt = (slider, at) => {
  const part = at / 1000;
  const value = slider.log ? slider.low * (slider.high / slider.low) ** part : slider.low + (slider.high - slider.low) * part;
  return slider.whole ? Math.round(value) : Number(value.toPrecision(3));
};

function refresh() {
  for (const section of SECTIONS) {
    const place = document.getElementById(section.name);
    const result = compute(section);
    place.querySelector("[data-tiles]").replaceChildren(
      ...TILES[section.name](result).map(([label, text, bad]) => {
        const tile = element("div", null, bad ? { class: "no" } : {});
        tile.append(element("span", label), element("strong", text));
        return tile;
      }),
    );
    CHARTS[section.name](place.querySelector("[data-chart]"), result, section);
  }
}

function tie(section) {
  const place = document.getElementById(section.name);
  for (const choice of section.choices) {
    const list = place.querySelector(`select[name=${choice.name}]`);
    list.addEventListener("change", () => {
      Object.assign(state, choice.options[list.value]);
      refresh();
    });
  }
  for (const slider of section.sliders) {
    const range = place.querySelector(`input[type=range][name=${slider.name}]`);
    const text = place.querySelector(`input[type=text][name=${slider.name}]`);
    const show = () => {
      range.value = position(slider, state[slider.name]);
      text.value = short(state[slider.name]);
    };
    range.addEventListener("input", () => {
      state[slider.name] = valueAt(slider, Number(range.value));
      text.value = short(state[slider.name]);
      text.classList.remove("bad");
      refresh();
    });
    text.addEventListener("change", () => {
      const value = parsed(text.value);
      const good = Number.isFinite(value) && value >= slider.low && value <= slider.high;
      text.classList.toggle("bad", !good);
      if (!good) return;
      state[slider.name] = slider.whole ? Math.round(value) : value;
      show();
      refresh();
    });
    show();
  }
}

if (typeof document !== "undefined") {
  SECTIONS.forEach(tie);
  refresh();
}
