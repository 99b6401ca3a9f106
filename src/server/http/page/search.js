// Owns the search box: what was typed becomes a request, the answer a table.

let known = []; // collections as last listed
const by = () => document.querySelector('input[name="by"]:checked').value;
const shape = () => {
  show($("l-id"), by() === "id");
  show($("l-vector"), by() === "vector");
  show($("l-exact"), by() !== "filter");
};
document.querySelectorAll('input[name="by"]').forEach((input) => { input.onchange = shape; });
shape();

/** A collection's filter columns are what can be shown without asking the source: a good beginning. */
function chosenCollection() {
  const def = known.find((one) => one.name === $("f-collection").value);
  if (def?.filter_columns) $("f-columns").value = def.filter_columns.map((column) => column.name).join(", ");
}
$("f-collection").onchange = chosenCollection;

/** The id as JSON: numbers and objects as they are written, anything else as text. */
const idJson = (typed) => {
  try {
    parsed(typed);
    return typed;
  } catch {
    return JSON.stringify(typed);
  }
};
const keyKind = () => known.find((one) => one.name === $("f-collection").value)?.key || [];
/** A key of one text column may look like a number. */
const asId = (typed) => (keyKind().length === 1 && !/^(int|oid)/.test(keyKind()[0].kind) ? JSON.stringify(typed) : idJson(typed));

const body = () => {
  const parts = [];
  if (by() === "id") parts.push(`"query":{"id":${asId($("f-id").value.trim())}}`);
  if (by() === "vector") parts.push(`"query":{"vector":${$("f-vector").value.trim() || "[]"}}`);
  parts.push(`"limit":${Number($("f-limit").value)}`);
  const filter = $("f-filter").value.trim();
  if (filter) parts.push(`"filter":${JSON.stringify(filter)}`);
  const columns = $("f-columns").value.split(",").map((name) => name.trim()).filter(Boolean);
  if (columns.length) parts.push(`"columns":${JSON.stringify(columns)}`);
  parts.push(`"recheck":${JSON.stringify($("f-recheck").value)}`);
  if (by() !== "filter") parts.push('"explain":true', `"search":{"exact":${$("f-exact").checked}}`);
  return `{${parts.join(",")}}`;
};

const facts = (answer) => {
  const { stats, recheck } = answer;
  const list = [["rows", count(answer.hits.length)], ["complete", answer.complete === undefined ? null : answer.complete ? "yes" : "may be short"],
    ["as of", answer.applied_lsn], ["age", answer.staleness_ms == null ? null : span(answer.staleness_ms / 1000)]];
  if (stats) list.push(["plan", `${stats.plan} (${stats.reason})`], ["ended by", stats.ended], ["compared", stats.exactness], ["distances", count(stats.visited)]);
  if (recheck) list.push(["recheck", `${recheck.mode}: ${count(recheck.checked)} asked, ${count(recheck.dropped)} dropped, ${count(recheck.refilled)} refilled`]);
  if (answer.explain) list.push(["segments", count(answer.explain.segments.length)], ["candidates", count(answer.explain.candidates)], ["pages", count(answer.explain.pages)]);
  if (answer.stale) list.push(["stale", answer.stale]);
  return list.filter(([, value]) => value != null);
};
const times = (explain) => {
  const { total, ...parts } = explain.timings_us;
  const list = Object.entries(parts);
  each($("r-bar"), list, () => el("i"), (node, [, us], at) => {
    look(node, "c" + (at % 5));
    node.style.width = (100 * us) / Math.max(1, total) + "%";
  });
  each($("r-legend"), [["total", total], ...list], () => el("div", {}, el("i"), el("dt"), el("dd")), (node, [name, us], at) => {
    look(node.children[0], at ? "c" + ((at - 1) % 5) : "");
    show(node.children[0], at > 0);
    text(node.children[1], name);
    text(node.children[2], span(us / 1e6));
  });
};
const table = (answer) => {
  const hits = answer.hits;
  const columns = [...new Set(hits.flatMap((hit) => Object.keys(hit.columns || {})))];
  const near = hits.some((hit) => "distance" in hit);
  const widest = Math.max(...hits.map((hit) => Math.abs(hit.distance || 0)), 1e-30);
  const numbers = (name) => (name === "distance" ? "far" : hits.every((hit) => typeof hit.columns?.[name] === "number") ? "n" : "");
  const head = ["#", "key", ...(near ? ["distance"] : []), ...columns];
  $("r-table").tHead.rows[0].replaceChildren(...head.map((name) => el("th", { scope: "col", className: numbers(name), textContent: name })));
  $("r-table").tBodies[0].replaceChildren(...hits.map((hit, at) => {
    const id = plain(hit.id);
    const row = el("tr", {}, el("td", { textContent: at + 1 }),
      el("td", { className: "mono" }, el("button", { type: "button", className: "plain mono", textContent: id, title: "What is near this row", onclick: () => nearRow(id) })));
    if (near) {
      const bar = el("i");
      bar.style.width = (100 * Math.abs(hit.distance || 0)) / widest + "%";
      row.append(el("td", { className: "far" }, el("div", { className: "dist" },
        el("span", { textContent: hit.distance == null ? "not a number" : hit.distance.toFixed(4) }), el("div", { className: "meter", ariaHidden: "true" }, bar))));
    }
    row.append(...columns.map((name) => el("td", { className: numbers(name), textContent: plain(hit.columns?.[name]) })));
    return row;
  }));
};
const note = (value, problem) => {
  text($("r-note"), value);
  look($("r-note"), problem ? "problem" : "muted");
  show($("r-note"), value !== "");
};
let asked = 0;
async function search() {
  const mine = ++asked;
  const button = $("form").querySelector("button.primary");
  button.disabled = true;
  try {
    const route = by() === "filter" ? "scroll" : "search";
    const answer = parsed(await request(`/v1/collections/${encodeURIComponent($("f-collection").value)}/${route}`, body()));
    if (mine !== asked) return;
    answer.hits ??= answer.rows ?? [];
    note(answer.hits.length ? "" : "No row.");
    each($("r-facts"), facts(answer), () => el("div", {}, el("dt"), el("dd")), (node, [name, value]) => {
      text(node.children[0], name);
      text(node.children[1], value);
      look(node, value === "may be short" || name === "stale" ? "warn" : "");
    });
    show($("r-facts"), true);
    show($("r-times"), !!answer.explain);
    if (answer.explain) times(answer.explain);
    table(answer);
    show($("r-scroll"), answer.hits.length > 0);
  } catch (error) {
    if (mine !== asked) return;
    ["r-facts", "r-times", "r-scroll"].forEach((id) => show($(id), false));
    const { code, title, detail, hint } = error.problem || { title: "The service does not answer", detail: error.message };
    note([code, title].filter(Boolean).join(" ") + (detail ? ": " + detail : "") + (hint ? ". " + hint[0].toUpperCase() + hint.slice(1) : ""), true);
    if (error.status === 401) askKey("This service wants a key, or the one given is not taken.");
  } finally {
    if (mine === asked) button.disabled = false;
  }
}
function nearRow(id) {
  document.querySelector('input[name="by"][value="id"]').checked = true;
  shape();
  $("f-id").value = id;
  search();
}
$("form").onsubmit = (event) => { event.preventDefault(); search(); };

// --- the round --------------------------------------------------------------------------------------------------------------

let heard = null; // when the service last answered
let list = [];
const banner = (level, title, detail) => {
  show($("banner"), !!title);
  look($("banner"), level);
  text($("banner-title"), title || "");
  text($("banner-text"), detail || "");
};
const state = (level, word) => {
  text($("state"), word);
  look($("state"), level, "pill");
};
const judge = (status) => {
  const { phase, reason, error } = status.replication;
  const age = status.positions.staleness_ms / 1000;
  const old = status.positions.staleness_ms == null ? "" : ` Answers are up to ${span(age)} old.`;
  if (phase === "retrying") return [state("bad", "disconnected"), banner("bad", "The source is away.", `${error}.${old} It is tried again by itself.`)];
  if (phase === "stopped") return [state("bad", "stopped"), banner("bad", "Replication has stopped.", `${reason}.${old}`)];
  if (status.stale) return [state("bad", "stale"), banner("bad", "Stale.", status.stale + "." + old)];
  if (phase === "waiting") return [state("warn", "waiting"), banner("", "Replication waits.", `${reason}.${old}`)];
  if (age > STALE_S) return [state("warn", "behind"), banner("", "Behind.", old.trim())];
  if (status.not_ready) return [state("warn", "not ready"), banner("", "Not ready.", status.not_ready + ".")];
  return [state("ok", "ready"), banner()];
};
const silent = () => {
  state("bad", "no answer");
  const since = heard ? ` What is shown is of ${clock(heard)}.` : "";
  banner("bad", "Disconnected.", "The service does not answer." + since);
  document.body.classList.add("gone");
};
const locked = (errors) => {
  const wants = errors.some((error) => error.status === 401);
  state("warn", wants ? "key needed" : "not allowed");
  const { problem } = errors[0];
  banner("", wants ? "A key is needed." : "Not everything may be read.", [problem.title, problem.detail].filter(Boolean).join(": "));
  if (wants && !refused) {
    refused = true;
    askKey("This service wants a key. It is sent as a bearer token and kept for this tab only.");
  }
};
async function round() {
  const asks = await Promise.allSettled([request("/v1/status"), request("/metrics")]);
  const failed = asks.filter((one) => one.status === "rejected").map((one) => one.reason);
  const silence = failed.find((error) => !error.status);
  if (silence) return silent();
  heard = Date.now();
  document.body.classList.remove("gone");
  text($("asof"), clock(heard));
  if (asks[1].value) {
    list = series(asks[1].value, METRICS);
    traffic(list, heard);
  }
  const status = asks[0].value && parsed(asks[0].value);
  // Without data the list is an error; the status knows at least their names.
  const bare = (status?.collections || []).map((one) => ({ ...one, state: one.state.state, reason: one.state.reason }));
  let told = true;
  known = bare;
  if (!status || status.collections) {
    try {
      known = parsed(await request("/v1/collections")).collections;
    } catch (error) {
      if (!error.status) return silent();
      told = ![401, 403].includes(error.status);
      if (!told) failed.push(error);
    }
  }
  if (told) collections(known, list);
  if (status) {
    text($("source"), status.source);
    text($("version"), status.version);
    text($("uptime"), span(status.uptime_s));
    pipeline(status);
    doctor(status.doctor);
    readiness(status, known);
    judge(status);
  }
  if (failed.length) locked(failed);
  try { await letters(known); } catch { lettersOf = ""; }
}
let timer;
async function refresh() {
  clearTimeout(timer);
  try { await round(); } finally {
    clearTimeout(timer);
    if (!document.hidden) timer = setTimeout(refresh, EVERY_MS);
  }
}
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : refresh()));
refresh();
