// Owns what happens on the page: asks the API every two seconds and writes what changed. Text goes in as text only.

const EVERY_MS = 2000;
const WINDOW = 30; // readings of which quantiles are made: a minute
const SPARKS = 60; // readings in a small curve: two minutes
const LETTERS = 50; // dead letters shown of a collection
const STALE_S = 30;
const METRICS = new Set(["ruvector_search_requests_total", "ruvector_search_duration_seconds_bucket",
  "ruvector_search_incomplete_total", "ruvector_search_recheck_dropped_total", "ruvector_lsn_wait_timeouts_total",
  "ruvector_apply_changes_total", "ruvector_copy_rows", "ruvector_copy_rows_expected", "ruvector_copy_eta_seconds",
  "ruvector_recall_estimate"]);

const $ = (id) => document.getElementById(id);
const el = (tag, props = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...children);
  return node;
};
/** Writes only what differs, so that nothing moves and no selection is lost. */
const text = (node, value) => { if (node.textContent !== value) node.textContent = value; };
const look = (node, level, base = "") => {
  const name = (base + " " + (level || "")).trim();
  if (node.className !== name) node.className = name;
};
/** Children of a node, one an item, made once and then filled again. */
const each = (parent, items, make, fill) => {
  while (parent.children.length > items.length) parent.lastElementChild.remove();
  items.forEach((item, at) => {
    if (!parent.children[at]) parent.append(make(item));
    fill(parent.children[at], item, at);
  });
};
const show = (node, there) => { if (node.hidden === there) node.hidden = !there; };

// --- asking -----------------------------------------------------------------------------------------------------------

const KEY = "ruvector-key";
let refused = false; // a key was asked for already
const request = async (path, body) => {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.authorization = "Bearer " + key;
  if (body !== undefined) headers["content-type"] = "application/json";
  const init = { headers, cache: "no-store", credentials: "omit", signal: AbortSignal.timeout(10000) };
  const answer = await fetch(path, body === undefined ? init : { ...init, method: "POST", body });
  const content = await answer.text();
  if (answer.ok) return content;
  let problem = { title: "The service answers " + answer.status, code: "", detail: "" };
  try { problem = parsed(content); } catch { /* a proxy's page, say */ }
  throw Object.assign(new Error(problem.title), { status: answer.status, problem });
};

const askKey = (why) => {
  if ($("key-dialog").open) return;
  text($("key-why"), why || "Sent as a bearer token with every request of this page. Kept for this tab only.");
  $("key-input").value = "";
  $("key-dialog").showModal();
};
$("key").onclick = () => askKey();
$("key-close").onclick = () => $("key-dialog").close();
$("key-forget").onclick = () => { sessionStorage.removeItem(KEY); $("key-dialog").close(); refused = false; refresh(); };
$("key-form").onsubmit = (event) => {
  event.preventDefault();
  const key = $("key-input").value.trim();
  if (key) sessionStorage.setItem(KEY, key);
  $("key-input").value = "";
  $("key-dialog").close();
  refused = false;
  refresh();
};

const THEMES = ["auto", "light", "dark"];
const setTheme = (theme) => {
  sessionStorage.setItem("ruvector-theme", theme);
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  text($("theme"), "Theme: " + theme);
};
$("theme").onclick = () => setTheme(THEMES[(THEMES.indexOf(sessionStorage.getItem("ruvector-theme")) + 1) % 3]);
setTheme(THEMES.find((theme) => theme === sessionStorage.getItem("ruvector-theme")) || "auto");

// --- tiles --------------------------------------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";
const tile = (parent, what, kind) => {
  const node = el("div", { className: "tile" });
  const [figure, beside] = [el("div", { className: "figure", textContent: "–" }), el("div", { className: "beside" })];
  node.append(el("div", { className: "what", textContent: what }), figure, beside);
  const values = [];
  let line, bar;
  if (kind === "curve") {
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", "0 0 100 20");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    line = svg.appendChild(document.createElementNS(SVG, "polyline"));
    node.append(svg);
  }
  if (kind === "meter") {
    bar = el("i");
    const meter = el("div", { className: "meter", role: "meter", ariaLabel: what, ariaValueMin: "0", ariaValueMax: "100" }, bar);
    node.append(meter);
  }
  parent.append(node);
  return (value, note, { level, share, point } = {}) => {
    text(figure, value);
    if (figure.title !== value) figure.title = value;
    text(beside, note || "");
    look(node, level, "tile");
    if (bar) {
      const percent = Math.min(100, Math.max(0, (share || 0) * 100));
      bar.style.width = percent + "%";
      bar.parentElement.ariaValueNow = percent.toFixed(0);
    }
    if (!line) return;
    values.push(Number.isFinite(point) ? point : 0);
    if (values.length > SPARKS) values.shift();
    const top = Math.max(...values) || 1;
    const dots = values.map((one, at) => `${(100 * (at + SPARKS - values.length)) / (SPARKS - 1)},${(19 - (18 * one) / top).toFixed(2)}`);
    line.setAttribute("points", dots.join(" "));
  };
};
const T = {
  staleness: tile($("pipe-tiles"), "Staleness, at most", "curve"),
  retained: tile($("pipe-tiles"), "WAL kept on the source for us", "meter"),
  slot: tile($("pipe-tiles"), "Slot"),
  applied: tile($("pipe-tiles"), "Changes applied", "curve"),
  qps: tile($("traffic"), "Searches a second", "curve"),
  p50: tile($("traffic"), "p50, last minute", "curve"),
  p99: tile($("traffic"), "p99, last minute", "curve"),
  short: tile($("traffic"), "Answers that may be short"),
  recheck: tile($("traffic"), "Rows dropped by the recheck"),
  recall: tile($("traffic"), "Recall, estimated"),
};

// --- replication ----------------------------------------------------------------------------------------------------------

const STAGES = [["source", "Source", ""], ["received", "Received", "behind"], ["durable", "Durable here", "behind"],
  ["applied", "Applied", "behind"], ["confirmed", "Confirmed", "to confirm"]];
each($("pipe"), STAGES, ([key, name]) => el("li", { id: "p-" + key },
  el("span", { className: "name", textContent: name }), el("span", { className: "lsn mono", textContent: "–" }),
  el("span", { className: "lag", textContent: " " })), () => {});

const pipeline = (status) => {
  const at = status.positions;
  for (const [key, , word] of STAGES) {
    const node = $("p-" + key);
    const lag = key === "source" ? null : between(at[key], at.source);
    text(node.children[1], at[key]);
    text(node.children[2], key === "source" ? "end of its WAL, as last heard" : lag === 0 ? "nothing " + word : bytes(lag) + " " + word);
    look(node, lag > 1e9 ? "bad" : lag > 64e6 ? "warn" : "");
  }
  const age = at.staleness_ms == null ? null : at.staleness_ms / 1000;
  T.staleness(span(age), age == null ? "the source has not been heard yet" : "age of what searches see",
    { level: age > STALE_S ? "bad" : "", point: age });
  const shown = status.protection;
  const most = shown.slots.reduce((a, b) => ((b.retained_wal_bytes || 0) > (a?.retained_wal_bytes ?? -1) ? b : a), null);
  const [kept, budget] = [most?.retained_wal_bytes, shown.budget_bytes];
  const share = budget > 0 ? (kept || 0) / budget : 0;
  const end = shown.budget_spent_in_s == null ? "" : `, spent in ${span(shown.budget_spent_in_s)}`;
  if (shown.measured_s_ago == null) return;
  T.retained(bytes(kept), budget > 0 ? `of a budget of ${bytes(budget)}${end}` : "no budget is set",
    { level: share >= 0.9 ? "bad" : share >= 0.5 ? "warn" : "", share });
  const held = { ours: "held by this service", heldby: "held by another service", unknown: "holder not known" }[String(shown.holder.state).replace(/_/g, "")];
  const wal = most ? most.wal_status || "lost" : "none";
  const odd = !most || !["reserved", "extended"].includes(wal);
  T.slot(wal, [most?.name, held || shown.holder.state, most?.failover ? "failover" : ""].filter(Boolean).join(", "),
    { level: odd ? "bad" : shown.holder.state === "ours" ? "" : "warn" });
};

// --- figures of searches --------------------------------------------------------------------------------------------------

const readings = [];
const traffic = (list, at) => {
  const of = (name) => list.filter((one) => one.name === name);
  const now = {
    at, searches: sum(of("ruvector_search_requests_total")), changes: sum(of("ruvector_apply_changes_total")),
    durations: buckets(of("ruvector_search_duration_seconds_bucket")),
  };
  const last = readings[readings.length - 1];
  // Counters begin anew with the service.
  if (last && now.searches < last.searches) readings.length = 0;
  readings.push(now);
  if (readings.length > WINDOW + 1) readings.shift();
  const [before, first] = [readings[Math.max(0, readings.length - 2)], readings[0]];
  const rate = (key) => (now.at > before.at ? Math.max(0, now[key] - before[key]) / ((now.at - before.at) / 1000) : 0);
  const figure = (n) => (n >= 100 ? count(n) : n.toFixed(1));
  T.qps(figure(rate("searches")), count(now.searches) + " since the start", { point: rate("searches") });
  T.applied(figure(rate("changes")) + " /s", count(now.changes) + " since the start", { point: rate("changes") });
  for (const [name, q] of [["p50", 0.5], ["p99", 0.99]]) {
    const found = quantile(q, first.durations, now.durations);
    const value = found ? (found.beyond ? "> " : "") + span(found.at) : "–";
    T[name](value, found ? "about, from the histogram" : "no search in the last minute", { point: found?.at });
  }
  const short = sum(of("ruvector_search_incomplete_total"));
  T.short(count(short), "since the start", { level: short ? "warn" : "" });
  const late = sum(of("ruvector_lsn_wait_timeouts_total"));
  T.recheck(count(sum(of("ruvector_search_recheck_dropped_total"))), `since the start; ${count(late)} waits timed out`);
  const recall = of("ruvector_recall_estimate").filter((one) => Number.isFinite(one.value));
  const least = recall.length ? Math.min(...recall.map((one) => one.value)) : null;
  T.recall(least == null ? "–" : least.toFixed(3), least == null ? "not measured by this service" : "of the last sample",
    { level: least != null && least < 0.9 ? "warn" : "" });
};

// --- collections ------------------------------------------------------------------------------------------------------------

const cell = (className = "") => el("td", { className });
const collectionRow = () => el("tr", {}, el("th", { scope: "row" }, el("span"), el("span", { className: "sub mono" })),
  el("td", {}, el("span"), el("span", { className: "sub" })), el("td", { className: "n" }, el("span"), el("span", { className: "sub" })), cell("n"), cell("n"), cell("n"), cell(), cell("n"),
  el("td", {}, el("span"), el("div", { className: "meter", hidden: true }, el("i"))));
const LEVEL = { live: "ok", copying: "warn", paused: "bad", refused: "bad" };

/** Progress of a copy: of one beside what answers from the list, of a first one from the metrics. */
const progress = (one, list) => {
  const of = (name) => list.find((s) => s.name === name && s.labels.collection === one.name)?.value;
  if (one.copy) {
    const { rows_read, share_read, eta_s, rows_loaded, rows_linked } = one.copy;
    return { note: `${count(rows_read)} read, ${count(rows_loaded)} loaded, ${count(rows_linked)} linked${eta_s == null ? "" : ", " + span(eta_s) + " left to read"}`, share: share_read };
  }
  if (one.state !== "copying") return null;
  const [rows, expected, eta] = ["ruvector_copy_rows", "ruvector_copy_rows_expected", "ruvector_copy_eta_seconds"].map(of);
  return { note: `${count(rows)} of about ${count(expected)} read${eta == null ? "" : ", " + span(eta) + " left to read"}`, share: expected ? rows / expected : 0 };
};
const collections = (all, list) => {
  show($("c-empty"), all.length === 0);
  each($("collections"), all, collectionRow, (row, one) => {
    const [name, state, rows, vectors, linked, memory, tiers, dead, copy] = row.children;
    text(name.children[0], one.name);
    text(name.children[1], one.table && one.table !== one.name ? one.table : "");
    text(state.children[0], one.state);
    look(state.children[0], LEVEL[one.state], "pill");
    text(state.children[1], [one.reason, one.state === "live" && !one.copy ? "" : one.trouble, one.compacting ? "compacting" : ""].filter(Boolean).join("; "));
    const indexes = one.vectors || [];
    const total = (key) => indexes.reduce((n, index) => n + index[key], 0);
    text(rows.children[0], count(one.rows));
    text(rows.children[1], one.source_rows_estimate == null ? "" : `of about ${count(one.source_rows_estimate)} in the source`);
    text(vectors, one.vectors ? count(total("vectors")) : "–");
    text(linked, total("nodes") ? ((100 * total("linked")) / total("nodes")).toFixed(1) + " %" : "–");
    text(memory, one.vectors ? bytes(total("memory_bytes")) : "–");
    const kept = indexes.flatMap((index) => index.tiers || []);
    text(tiers, kept.map((t) => `${t.tier === "none" ? "sealed" : t.tier} ${count(t.vectors)} (${bytes(t.memory_bytes)}, ${t.encodings.join("+")})`).join("; ") || "–");
    text(dead, count(one.dead_letters));
    look(dead, one.dead_letters ? "some" : "zero", "n");
    const under = progress(one, list);
    text(copy.children[0], under ? under.note : "whole");
    show(copy.children[1], !!under);
    copy.children[1].firstElementChild.style.width = (under ? Math.min(100, under.share * 100) : 0) + "%";
  });
  const names = all.filter((one) => one.state !== "refused").map((one) => one.name);
  const select = $("f-collection");
  if (names.join("\n") !== [...select.options].map((option) => option.value).join("\n")) {
    const chosen = select.value;
    select.replaceChildren(...names.map((value) => el("option", { value, textContent: value })));
    if (names.includes(chosen)) select.value = chosen;
    chosenCollection();
  }
};

// --- doctor, readiness, dead letters ------------------------------------------------------------------------------------------

const card = () => el("li", {}, el("span", { className: "head" }), el("span"), el("pre", { tabIndex: 0, hidden: true }));
const fillCard = (node, { level, head, note, fix }) => {
  look(node, level);
  text(node.children[0], head);
  text(node.children[1], note ? ": " + note : "");
  text(node.children[2], fix || "");
  show(node.children[2], !!fix);
};
const doctor = (found) => {
  const asked = found.checked_s_ago != null;
  text($("d-sum"), asked ? `${found.errors} errors, ${found.warnings} warnings, ${found.ok} well; asked ${span(found.checked_s_ago)} ago` : "");
  each($("doctor"), found.findings, card, (node, one) => fillCard(node, {
    level: one.severity === "error" ? "bad" : "warn", head: `${one.code} ${one.check}`, note: one.observed, fix: one.fix,
  }));
  show($("d-empty"), found.findings.length === 0);
  text($("d-empty"), asked ? "Nothing to repair on the source." : "The doctor has not been at the source yet.");
};
const readiness = (status, all) => {
  const items = [];
  const add = (level, head, note) => note && items.push({ level, head, note });
  (status.not_ready || "").split("; ").forEach((reason) => add("bad", "Not ready", reason));
  const { phase, reason, error } = status.replication;
  if (phase !== "streaming") add(phase === "stopped" ? "bad" : "warn", "Replication is " + phase, reason || error || "looking at the source");
  for (const one of all) {
    if (["paused", "refused"].includes(one.state)) add("bad", `Collection ${one.name} is ${one.state}`, one.reason || "see the log");
  }
  add("warn", "Copy", status.copy_trouble);
  add("warn", "Slot", status.protection.warning);
  add("bad", "Slot given up", status.protection.given_up_reason);
  add("warn", "Heartbeat", status.protection.heartbeat.refused);
  for (const row of status.registrations?.rows || []) add("warn", "Registration " + row.name, row.taken ? "" : row.reason);
  add("warn", "Registrations", status.registrations?.trouble);
  each($("ready"), items, card, fillCard);
  show($("w-empty"), items.length === 0);
  text($("w-empty"), "Ready: searches are answered from an index that follows the source.");
};
let lettersOf = "";
const letters = async (all) => {
  const bad = all.filter((one) => one.dead_letters > 0);
  // Asked for again only when a number changed.
  const of = JSON.stringify(bad.map((one) => [one.name, one.dead_letters]));
  const total = bad.reduce((n, one) => n + one.dead_letters, 0);
  if (of !== lettersOf) {
    const lists = await Promise.all(bad.map(async (one) => {
      const answer = parsed(await request(`/v1/collections/${encodeURIComponent(one.name)}/dead_letters`));
      return answer.dead_letters.slice(0, LETTERS).map((letter) => ({ ...letter, collection: one.name }));
    }));
    lettersOf = of;
    each($("letters"), lists.flat(), () => el("tr", {}, el("td", {}, el("span", { className: "mono" }), el("span", { className: "sub" })), cell(),
      el("td", {}, el("span"), el("span", { className: "sub" }))), (row, letter) => {
      const [key, column, why] = row.children;
      text(key.children[0], plain(letter.key));
      text(key.children[1], letter.collection);
      text(column, plain(letter.column));
      text(why.children[0], plain(letter.reason));
      text(why.children[1], "written at " + plain(letter.lsn));
    });
  }
  text($("l-sum"), total ? count(total) + (total > LETTERS ? `, the first ${LETTERS} of a collection are shown` : "") : "");
  show($("l-scroll"), total > 0);
  show($("l-empty"), total === 0);
  text($("l-empty"), "Every row could be indexed.");
};
