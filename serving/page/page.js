// The page: search the catalog, build a history, and see what comes next, beside what simple rules say.
// Titles are a shop's own: they become text nodes, and never markup.
"use strict";

const at = (id) => document.getElementById(id);
const chosen = []; // {entry, title}: an id of the catalog, or {field: text} of an item that it does not have
const titleField = { name: "title" };
const asked = {}; // what -> the AbortController of the last request of its kind

// The server

async function ask(what, path, body) {
  asked[what]?.abort(); // only the last of a kind is wanted
  asked[what] = new AbortController();
  const options = { signal: asked[what].signal };
  if (body !== undefined) {
    Object.assign(options, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  }
  const answer = await fetch(path, options);
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.error);
  return said;
}

async function trying(work) {
  try {
    await work();
  } catch (error) {
    if (error.name !== "AbortError") say(error instanceof TypeError ? "The server cannot be reached." : error.message, true);
  }
}

function say(words, isFault = false) {
  at("status").textContent = words;
  at("status").classList.toggle("fault", isFault);
}

// Parts of the page

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function button(words, title, action) {
  const made = make("button", { type: "button", textContent: words, onclick: action });
  made.setAttribute("aria-label", `${words}: ${title}`);
  return made;
}

function itemRow(item, ...extra) {
  const title = item.title || `(no title) ${item.id}`;
  const does = make("span", { className: "does" },
    button("Add", title, () => add(item.id, title)),
    button("Details", title, () => trying(() => showDetails(item.id))));
  return make("li", {}, ...extra.filter((one) => one.className === "score"), title,
    ...extra.filter((one) => one.className !== "score"), does);
}

const score = (words) => make("span", { className: "score", textContent: words });

function fill(list, rows, ifNone) {
  const place = [...list.querySelectorAll("button")].indexOf(document.activeElement);
  list.replaceChildren(...(rows.length ? rows : [make("li", { className: "hint", textContent: ifNone })]));
  if (place >= 0) list.querySelectorAll("button")[place]?.focus(); // a list that comes late does not take it away
}

// Catalog

async function search() {
  const words = at("words").value.trim();
  at("add-text").hidden = !words;
  at("add-text").textContent = `Add “${words}” as the title of an item that is not in the catalog`;
  if (!words) return at("found").replaceChildren();
  const { items } = await ask("search", `search?limit=8&words=${encodeURIComponent(words)}`);
  fill(at("found"), items.map((item) => itemRow(item)), "No title holds these words.");
}

// History

function add(entry, title) {
  chosen.push({ entry, title });
  say(`Added to the history: ${title}`);
  refresh();
}

function remove(place) {
  const [gone] = chosen.splice(place, 1);
  say(`Removed from the history: ${gone.title}`);
  refresh();
  const left = at("history").querySelectorAll("button"); // so that the keyboard does not lose its place
  (left[Math.min(place, left.length - 1)] ?? at("words")).focus();
}

function showHistory() {
  at("history").replaceChildren(...chosen.map(({ title }, place) =>
    make("li", {}, `${title} `, button("Remove", title, () => remove(place)))));
  at("history-hint").hidden = at("clear").hidden = false;
  at(chosen.length ? "history-hint" : "clear").hidden = true;
}

// Lists

function refresh() {
  showHistory();
  trying(recommend);
  trying(applyRules);
}

function request() {
  return { history: chosen.map(({ entry }) => entry), k: Number(at("k").value) };
}

async function recommend() {
  if (!chosen.length) {
    asked.recommend?.abort();
    return fill(at("recommended"), [], "Needs a history of one item or more.");
  }
  at("recommended-section").setAttribute("aria-busy", "true");
  const body = { ...request(), explain: true, exclude_history: at("exclude").checked };
  const { items } = await ask("recommend", "recommend", body);
  fill(at("recommended"), items.map((item) => itemRow(item, score(percent(item.probability)), why(item.because),
    bar(item.probability, items[0].probability))), "Nothing may be recommended.");
  at("recommended-section").setAttribute("aria-busy", "false");
}

const cosine = (value) => (Math.abs(value) < 0.005 ? 0 : value).toFixed(2); // no minus before zeros
const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 2 : 1)} %`;

function bar(probability, highest) { // beside the number, which says the same
  const made = make("progress", { className: "bar", value: probability, max: highest });
  made.setAttribute("aria-hidden", "true");
  return made;
}

function why(reasons) {
  const said = reasons.map((reason) => {
    const followed = reason.followed > 0 ? `, ${percent(reason.followed)} in the log` : "";
    return `${reason.title} (texts ${cosine(reason.similarity)}${followed})`;
  });
  return make("span", { className: "why", textContent: said.length ? `because of ${said.join("; ")}` : "" });
}

const RULES = { // name -> what it does, and how its score is written
  "nearest text": ["Like the last item’s text", cosine],
  popularity: ["Most often in the log", percent],
  repeat: ["The history again, the last first", (value) => `${value} ×`],
};

async function applyRules() {
  const said = chosen.length ? await ask("rules", "rules", request()) : {};
  at("rule-lists").replaceChildren(...Object.entries(RULES).map(([name, [words, written]]) => {
    const list = make("ol", { className: "items" });
    list.setAttribute("aria-label", words);
    const items = said[name] ?? [];
    const ifNone = !chosen.length ? "Needs a history." : said[name] === null ? "The bundle has no log." : "Nothing.";
    fill(list, items.map((item) => itemRow(item, score(written(item.score)))), ifNone);
    return make("div", {}, make("h3", { textContent: `${name[0].toUpperCase()}${name.slice(1)}` }),
      make("p", { className: "hint", textContent: words }), list);
  }));
}

// One item

async function showDetails(id) {
  const address = encodeURIComponent(id);
  const item = await ask("item", `item?id=${address}`);
  at("details-title").textContent = item.title || "(no title)";
  const facts = [["Id", item.id], ...Object.entries(item.fields)];
  facts.push(["Codes", item.codes ? item.codes.join(" · ") : "none: the bundle has no model"]);
  facts.push(["Share of the log", item.popularity === null ? "none: the bundle has no log" : percent(item.popularity)]);
  at("facts").replaceChildren(...facts.flatMap(([name, value]) =>
    [make("dt", { textContent: name }), make("dd", { textContent: Array.isArray(value) ? value.join(", ") : String(value) })]));
  at("neighbours").replaceChildren();
  if (!at("details").open) at("details").showModal();
  at("details").scrollTop = 0;
  try {
    const near = await ask("near", `similar?k=8&id=${address}`);
    fill(at("neighbours"), near.items.map((one) => itemRow(one, score(cosine(one.score)))), "None.");
  } catch (error) { // said here, since the dialog stands before the line for messages
    fill(at("neighbours"), [], error.message);
  }
}

// Start

at("search-form").onsubmit = (event) => { event.preventDefault(); trying(search); };
at("words").oninput = () => trying(search);
at("add-text").onclick = () => {
  const words = at("words").value.trim();
  add({ [titleField.name]: words }, words);
};
at("clear").onclick = () => { chosen.length = 0; say("The history is empty."); refresh(); at("words").focus(); };
at("exclude").onchange = at("k").onchange = refresh;
at("close").onclick = () => at("details").close();
refresh();
trying(async () => {
  const { items, rank_by: rankBy, title_field: field } = await ask("health", "health");
  titleField.name = field;
  at("bundle").textContent = `${items.toLocaleString("en")} items, ranked by ${rankBy}`;
});
